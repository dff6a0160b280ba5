"""Measured fidelities → a table on the console, `fidelity.md`, `fidelity.json` and `fidelity.png`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Measured = Mapping[str, Any]  # of one teacher: see `fidelity_command.measure`

COLUMNS = ("run", "upsampler", "seeds", "fidelity", "raw targets", "× bilinear", "× the best")
NOTE = """\
Fidelity: variance of the teacher's features over the squared error with which the sharpened map, brought back to the
teacher's resolution, predicts the teacher's maps of other views. Higher is better, 1 is the best constant. In
brackets: 95 % bootstrap interval over pictures, and over seeds where there are several (`seeds`: how many, lowest and
highest; of one seed the interval says nothing of how another training would end). `fidelity` is against targets
without the position noise that the run has learned, `raw targets` against the teacher's maps as they are. `×
bilinear` compares with the same maps without that noise, enlarged, against the same targets, picture by picture; `×
the best` with the first row, also picture by picture: a row whose interval leaves out 1 is really behind. The row
`untrained` learns nothing: no bias, and the best of six Gaussians as its downsampler. Fidelity says whether the
teacher's cells can be had back, not whether there is detail between them: `nearest`, which only repeats cells, is a
yardstick too, and the panel has the last word."""
BLUE, ORANGE, GREY = "#0072b2", "#e69f00", "#7f7f7f"


def keep(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    write(temporary)
    os.replace(temporary, path)


def write(measured: Sequence[Measured], folder: Path) -> None:
    """The report's files, but for the pictures that are drawn from maps."""
    keep(folder / "fidelity.json", lambda path: path.write_text(json.dumps(list(measured), indent=2) + "\n"))
    keep(folder / "fidelity.png", lambda path: bars(measured).savefig(path, dpi=130))
    keep(folder / "fidelity.md", lambda path: path.write_text(markdown(measured)))


def show(measured: Sequence[Measured]) -> None:
    """The tables on the console."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for teacher in measured:
        table = Table(title=_heading(teacher), title_justify="left", box=None, pad_edge=False)
        for column in COLUMNS:
            side, fold = ("left" if column in COLUMNS[:3] else "right"), column in COLUMNS[:3]
            table.add_column(column.replace(" ", "\n"), justify=side, no_wrap=not fold, overflow="fold")
        for row in lines(teacher, _short):
            table.add_row(*row)
        console.print(table)
        console.print()


def lines(teacher: Measured, text: Callable[[Mapping[str, float | None]], str]) -> list[tuple[str, ...]]:
    """A teacher's rows, in the order of `COLUMNS`: the runs, the best first, and the yardstick."""
    rows = []
    for row in teacher["rows"]:
        shown = [text(row[key]) for key in ("fidelity", "fidelity_raw", "gain", "share")]
        rows.append((row["run"], f"{row['upsampler']} {row['factor']}x", _seeds(row["by_seed"]), *shown))
    for row in teacher["bilinear"]:
        figure = text(row["fidelity_raw"])
        rows.append(("untrained", f"bilinear {row['factor']}x", "", figure, figure, "", ""))
    return rows


def _seeds(values: Sequence[float]) -> str:
    return "1" if len(values) == 1 else f"{len(values)}: {min(values):.2f} to {max(values):.2f}"


def markdown(measured: Sequence[Measured]) -> str:
    """The report as a page: a section a teacher, with its pictures."""
    parts = ["# Fidelity of sharpened feature maps", "", NOTE, ""]
    for teacher in measured:
        parts += [f"## {_heading(teacher)}", "", _protocol(teacher), ""]
        parts += ["| " + " | ".join(COLUMNS) + " |", "|---|---|---|" + "---:|" * (len(COLUMNS) - 3)]
        parts += ["| " + " | ".join(row) + " |" for row in lines(teacher, _figure)]
        parts += ["", *(f"![{name}]({name})" for name in teacher["pictures_of_it"]), ""]
        if "cost" in teacher:
            parts += [f"Times: {teacher['cost']['machine']}; medians after a warm-up, one picture at a time.", ""]
    return "\n".join([*parts, "![fidelity.png](fidelity.png)", ""])


def _heading(teacher: Measured) -> str:
    about = teacher["teacher"]
    height, width = about["native_size"]
    return f"{about['name']} ({about['identity']}), {height}×{width} px, {teacher['pictures']} pictures"


def _protocol(teacher: Measured) -> str:
    views, names = teacher["views"], ", ".join(f"`{name}`" for name in teacher["source"])
    low, high = views["zoom"]
    whose = "those of the runs' recipes" if views["shared_by_all_recipes"] else "the defaults: the runs' recipes differ"
    return (
        f"Pictures: the first {teacher['pictures']} of {names}. Views ({whose}): {views['jitters']} a picture, always "
        f"the same, of a base view zoomed {low:g} to {high:g} times; turned by up to {views['rotation']:g}° and moved "
        f"by up to {views['shift']:.0%}."
    )


def _figure(estimate: Mapping[str, float | None]) -> str:
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _short(estimate: Mapping[str, float | None]) -> str:
    """In two lines, for a table of 80 characters."""
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    return f"{value:.2f}" if low is None else f"{value:.2f}\n{low:.2f}–{high:.2f}"


def bars(measured: Sequence[Measured]) -> Figure:
    """Fidelity a run with its interval: axes of its own a teacher, which are not to be compared with each other."""
    from matplotlib.figure import Figure

    counts = [len(teacher["rows"]) + len(teacher["bilinear"]) for teacher in measured]
    figure = Figure(figsize=(7.5, 1.3 * len(counts) + 0.42 * sum(counts) + 0.4), layout="constrained")
    all_axes = figure.subplots(len(counts), squeeze=False, gridspec_kw={"height_ratios": [n + 1 for n in counts]})
    for axes, teacher in zip(all_axes[:, 0], measured):
        _bars_of(axes, teacher)
    handles, labels = all_axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    return figure


def _name(run: str, kind: str) -> str:
    return kind if kind.startswith(f"{run} ") else f"{run}\n{kind}"


def _bars_of(axes, teacher: Measured) -> None:
    names = [_name(row["run"], f"{row['upsampler']} {row['factor']}x") for row in teacher["rows"]]
    names += [f"bilinear {row['factor']}x, untrained" for row in teacher["bilinear"]]
    count, plain = len(teacher["rows"]), teacher["bilinear"]
    series = [
        ("fidelity (position noise removed)", BLUE, -0.2, range(count), [row["fidelity"] for row in teacher["rows"]]),
        ("against raw targets", ORANGE, 0.2, range(count), [row["fidelity_raw"] for row in teacher["rows"]]),
        ("untrained bilinear", GREY, 0.0, range(count, len(names)), [row["fidelity_raw"] for row in plain]),
    ]
    for label, colour, shift, places, found in series:
        places = [place + shift for place in places]
        axes.barh(places, [e["value"] for e in found], height=0.38, color=colour, label=label)
        for place, estimate in zip(places, found):
            low, high = estimate["low"] or estimate["value"], estimate["high"] or estimate["value"]
            axes.plot([low, high], [place, place], color="#222222", linewidth=1.2)
            axes.text(high, place, f"  {estimate['value']:.2f}", va="center", fontsize=7)
    axes.axvline(max(row["fidelity_raw"]["value"] for row in plain), color=GREY, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.set_title(_heading(teacher), fontsize=9, loc="left")
    what = "fidelity, higher is better (black: 95 % over pictures and seeds; dotted: the best untrained bilinear)"
    axes.set_xlabel(what, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
