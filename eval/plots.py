"""Turns Δm% rows and feature maps into pictures for the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.delta_m import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f")  # Okabe and Ito
WIDTH = 4.6  # inches: narrow, so that its text is readable on a phone
WIDE_RANGE = 20.0  # Δ% beyond which small differences would vanish on a linear axis


def delta_bars(rows: Sequence[Row], baseline: str) -> Figure | None:
    """Δm% overall and by group, a bar a model with its standard error; None where there is nothing to compare."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.model != baseline and any(row.groups.values())]
    if not rows:
        return None
    lines = ["overall", *rows[0].groups]
    height = 0.9 + len(lines) * (0.16 + 0.17 * len(rows))
    figure = Figure(figsize=(WIDTH, height + 0.2 * ((len(rows) + 1) // 2)), layout="constrained")
    axes = figure.subplots()
    bar = 0.8 / len(rows)
    largest = 0.0
    for number, row in enumerate(rows):
        for line, name in enumerate(lines):
            estimate = row.overall if line == 0 else row.groups[name]
            place = line + (number - (len(rows) - 1) / 2) * bar
            if estimate is None:
                axes.text(0, place, " n/a", va="center", fontsize=7, color="#555555")
                continue
            largest = max(largest, abs(estimate.mean))
            colour = COLOURS[number % len(COLOURS)]
            axes.barh(place, estimate.mean, height=0.9 * bar, color=colour, xerr=estimate.error, label="_",
                      error_kw={"elinewidth": 0.8, "ecolor": "#333333"})  # fmt: skip
            outwards = 1 if estimate.mean >= 0 else -1
            axes.annotate(
                f"{estimate.mean:+.1f}", (estimate.mean + outwards * (estimate.error or 0.0), place),
                xytext=(3 * outwards, 0), textcoords="offset points", va="center",
                ha="left" if outwards > 0 else "right", fontsize=7,
            )  # fmt: skip
        axes.barh(0, 0, color=COLOURS[number % len(COLOURS)], label=row.model)
    _dress(axes, lines, largest, baseline)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    return figure


def _dress(axes, lines: Sequence[str], largest: float, baseline: str) -> None:
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(lines)), lines, fontsize=8)
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set_ylim(len(lines) - 0.5, -0.5)
    label = f"Δ% against {baseline} (right is better)"
    if largest > WIDE_RANGE:
        axes.set_xscale("symlog", linthresh=1, linscale=0.6)
        ticks = [tick for tick in (-100, -10, -1, 0, 1, 10, 100, 1000) if abs(tick) <= 10 * largest]
        axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
        label += "\nlogarithmic axis beyond ±1"
    axes.margins(x=0.16)
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", linewidth=0.4, color="#dddddd")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def encode(figure: Figure, kind: str) -> bytes:
    """A figure as svg or png bytes, the same for the same figure."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "radio-distill", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that needs no network."""
    return f"data:image/{'svg+xml' if kind == 'svg' else kind};base64,{base64.b64encode(content).decode()}"
