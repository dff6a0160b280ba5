"""Turns rows of Δm% into a bar chart: overall and by group, a bar a model with its standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eval.delta_m import Row
from eval.estimate import Estimate
from eval.plots import GRID, SOFT, WIDE_RANGE, WIDTH, Look
from eval.report.illustration import Illustration, chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def delta_bars(rows: Sequence[Row], baseline: str, looks: Mapping[str, Look]) -> Illustration | None:
    """None where there is nothing to compare."""
    rows = [row for row in rows if row.model != baseline and any(row.groups.values())]
    if not rows:
        return None
    figure = draw(rows, baseline, looks)
    return chart("delta", figure, "Bars of a group are in the legend's order; whiskers are one standard error.",
                 f"Δ% against {baseline}, overall and by group, a bar a model")  # fmt: skip


def draw(rows: Sequence[Row], baseline: str, looks: Mapping[str, Look]) -> Figure:
    """Every row a colour, every group a cluster of bars, overall on top."""
    from matplotlib.figure import Figure

    clusters = ["overall", *rows[0].groups]
    legend = 0.2 * ((len(rows) + 1) // 2)
    figure = Figure(figsize=(WIDTH, 0.9 + legend + len(clusters) * (0.16 + 0.17 * len(rows))), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(rows)
    for number, row in enumerate(rows):
        look = looks[row.model]
        for cluster, found in enumerate([row.overall, *row.groups.values()]):
            _bar(axes, found, cluster + (number - (len(rows) - 1) / 2) * height, 0.9 * height, look)
        axes.barh(0, 0, color=look.colour, hatch=look.hatch, edgecolor="white", label=row.model)
    known = [found for row in rows for found in (row.overall, *row.groups.values()) if found is not None]
    _dress(axes, clusters, max(abs(found.mean) for found in known), baseline)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    return figure


def _bar(axes: Axes, found: Estimate | None, place: float, height: float, look: Look) -> None:
    if found is None:
        axes.text(0, place, " n/a", va="center", fontsize=7, color=SOFT)
        return
    axes.barh(place, found.mean, height=height, color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0,
              xerr=found.error, error_kw={"elinewidth": 0.8, "ecolor": "#333333"}, label="_")  # fmt: skip
    outwards = 1 if found.mean >= 0 else -1
    axes.annotate(
        f"{found.mean:+.1f}".replace("-", "−"), (found.mean + outwards * (found.error or 0.0), place),
        xytext=(3 * outwards, 0), textcoords="offset points", va="center", ha="left" if outwards > 0 else "right",
        fontsize=7,
    )  # fmt: skip


def _dress(axes: Axes, clusters: Sequence[str], largest: float, baseline: str) -> None:
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(clusters)), clusters, fontsize=8)
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set_ylim(len(clusters) - 0.5, -0.5)
    label = f"Δ% against {baseline} (right is better)"
    if largest > WIDE_RANGE:
        axes.set_xscale("symlog", linthresh=1, linscale=0.6)
        ticks = [tick for tick in (-1000, -100, -10, -1, 0, 1, 10, 100, 1000, 10000) if abs(tick) <= 10 * largest]
        axes.set_xticks(ticks, [f"{tick:+d}".replace("-", "−") if tick else "0" for tick in ticks])
        label += "\nlogarithmic axis beyond ±1"
    axes.margins(x=0.16)
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", linewidth=0.4, color=GRID)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
