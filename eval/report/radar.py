"""Turns rows of Δm% into a radar: an axis a group, a polygon a model, and the baseline as the ring at 0."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from eval.delta_m import Row
from eval.plots import BASELINE, GRID, SOFT, WIDE_RANGE, WIDTH, Look
from eval.report.illustration import Illustration, chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST = 3  # axes that make a polygon
DECADES = (-100, -10, 0, 10, 100, 1000, 10000, 100000)


def radar(rows: Sequence[Row], baseline: str, looks: Mapping[str, Look]) -> Illustration | None:
    """None with fewer than three groups, or where no model has a figure for all of them.

    A polygon with a guessed corner would lie, so a model that lacks a group is left out, and the caption says so.
    """
    others = [row for row in rows if row.model != baseline]
    groups = [group for group in (rows[0].groups if rows else ()) if any(row.groups[group] for row in others)]
    drawn = [row for row in others if all(row.groups[group] for group in groups)]
    if len(groups) < FEWEST or not drawn:
        return None
    values = {row.model: [row.groups[group].mean for group in groups] for row in drawn}
    figure, caption = draw(values, groups, baseline, looks), _caption(values, groups, others, baseline)
    return chart("radar", figure, caption, f"radar of Δ% by group against {baseline}, a polygon a model")


def _caption(values: Mapping[str, Sequence[float]], groups: Sequence[str], others: Sequence[Row], baseline: str) -> str:
    """How to read it, and what it leaves out."""
    text = f"Δ% of each group against {baseline}, the thick ring at 0; outwards is better. For ±, see the table."
    text += " The scale is logarithmic beyond ±1." if _wide(values) else ""
    empty = [group for group in others[0].groups if group not in groups]
    text += f" No axis for {', '.join(empty)}: n/a for every model." if empty else ""
    lacking = {row.model: [group for group in groups if row.groups[group] is None] for row in others}
    left_out = [f"{model} (n/a in {', '.join(missing)})" for model, missing in lacking.items() if missing]
    return text + (f" Not drawn: {'; '.join(left_out)}." if left_out else "")


def draw(
    values: Mapping[str, Sequence[float]], groups: Sequence[str], baseline: str, looks: Mapping[str, Look]
) -> Figure:
    """`values`: model → Δ% of each group."""
    from matplotlib.figure import Figure

    legend = 0.2 * ((len(values) + 2) // 2)
    figure = Figure(figsize=(WIDTH, WIDTH - 0.2 + legend), layout="constrained")
    axes = figure.add_subplot(projection="polar", theta_offset=math.pi / 2, theta_direction=-1)
    angles = np.linspace(0, 2 * np.pi, len(groups), endpoint=False)
    scale = _squashed if _wide(values) else float
    circle = np.linspace(0, 2 * np.pi, 181)
    axes.plot(
        circle, np.full_like(circle, scale(0)), color=BASELINE.colour, linewidth=1.8, label=f"{baseline} (baseline)"
    )
    for model, figures in values.items():
        look, corners = looks[model], [scale(value) for value in figures]
        axes.plot([*angles, angles[0]], [*corners, corners[0]], color=look.colour, linestyle=look.line, linewidth=1.5,
                  marker=look.marker, markersize=4, label=model)  # fmt: skip
    _rings(axes, values, scale)
    axes.set_xticks(angles, [group.replace(" ", "\n", 1) for group in groups], fontsize=8)
    axes.tick_params(axis="x", pad=9)
    axes.spines["polar"].set_visible(False)
    axes.grid(linewidth=0.5, color=GRID)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False, handlelength=3)
    return figure


def _rings(axes, values: Mapping[str, Sequence[float]], scale) -> None:
    """Rings at round Δ%, labelled between two axes; the centre is somewhat worse than the worst figure."""
    from matplotlib.ticker import MaxNLocator

    every = [0.0, *(value for figures in values.values() for value in figures)]
    low, high = min(every), max(every)
    ticks = DECADES if scale is _squashed else MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    reach = max(scale(high) - scale(low), 1e-6)
    bottom, top = scale(low) - 0.35 * reach, scale(high) + 0.05 * reach
    ticks = [tick for tick in ticks if bottom < scale(tick) <= top]
    axes.set_ylim(bottom, top)
    labels = [f"{tick:+g}".replace("-", "−") if tick else "0" for tick in ticks]
    between = 180 / max(len(axes.get_xticks()), 1)
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    axes.set_yticks([scale(tick) for tick in ticks], labels, fontsize=7, color=SOFT, bbox=behind)
    axes.set_rlabel_position(between)


def _wide(values: Mapping[str, Sequence[float]]) -> bool:
    return max(abs(value) for figures in values.values() for value in figures) > WIDE_RANGE


def _squashed(value: float) -> float:
    """Linear near 0, logarithmic beyond ±1."""
    return math.copysign(math.log10(1 + abs(value)), value)
