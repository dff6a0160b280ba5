"""Turns lines of scores and rows of Δm% into `scores.tex`, a booktabs table that a paper can include."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eval.report.differences import UNRESOLVED, Delta, DeltaLine
from eval.report.lines import AT, BELOW, Cell, Line

SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "Δ": r"$\Delta$", "±": r"$\pm$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "→": r"$\rightarrow$", "←": r"$\leftarrow$", "×": r"$\times$", "−": r"$-$", "–": "--",
    "—": "---", "°": r"$^\circ$", "≈": r"$\approx$", "≤": r"$\le$", "≥": r"$\ge$", "δ": r"$\delta$", "σ": r"$\sigma$",
    "τ": r"$\tau$", "α": r"$\alpha$", "²": r"$^2$", "…": r"\ldots{}", "“": "``", "”": "''", "’": "'", "·": r"$\cdot$",
}  # fmt: skip
MARKS = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
LEVELS = {AT: r"$^{\approx}$", BELOW: r"$^{<}$", "": ""}


class Caption(NamedTuple):
    """What the table's caption must say."""

    baseline: str
    date: str
    rendered: bool = False  # no photographs


def escaped(text: str) -> str:
    """Plain text as LaTeX; a letter that pdflatex would not know stays as it is (its default encoding is UTF-8)."""
    return "".join(SPECIAL.get(character, character) for character in text)


def scores_tex(
    counted: Sequence[Line], shown: Sequence[Line], deltas: Sequence[DeltaLine], names: Sequence[str], about: Caption
) -> str:
    """The whole table: groups as headings, Δm% below what it is made of, and last what does not enter it.

    A column a model, between the metric and chance on the left and the number of test pictures on the right.
    """
    columns = len(names) + 3
    head = ["metric", "chance", *map(escaped, names), "$n$"]
    body = [*_grouped(counted, names, columns)]
    if deltas:
        body += [r"\midrule", *_deltas(deltas, columns)]
    if shown:
        body += [r"\midrule", *_grouped(shown, names, columns, " (not in $\\Delta$m\\%)")]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}; a table wider than the page: \resizebox{\linewidth}{!}{...} (graphicx)",
            r"\begin{table}[t]", r"\centering\small", rf"\caption{{{_caption(counted, about)}}}",
            rf"\begin{{tabular}}{{lr{'r' * len(names)}r}}", r"\toprule", _row(head), r"\midrule", *body,
            r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
        ]
    )  # fmt: skip


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _grouped(lines: Sequence[Line], names: Sequence[str], columns: int, tail: str = "") -> list[str]:
    rows, group = [], None
    for line in lines:
        if line.group != group:
            rows += [r"\addlinespace"] if group is not None else []
            rows.append(rf"\multicolumn{{{columns}}}{{l}}{{\textit{{{escaped(line.group)}}}{tail}}} \\")
            group = line.group
        unit = f" [{escaped(line.unit)}]" if line.unit else ""
        name = f"{escaped(line.name)}{unit} {escaped(line.arrow)}".rstrip()
        figures = [_figure(line.cells[model]) for model in names]
        rows.append(_row([name, escaped(line.chance), *figures, str(line.n) if line.n else "--"]))
    return rows


def _figure(cell: Cell) -> str:
    if cell.text == "n/a":
        return "n/a"
    error = rf" {{\scriptsize {escaped(cell.error)}}}" if cell.error else ""
    return MARKS[cell.mark] % escaped(cell.text) + LEVELS[cell.level] + error


def _deltas(deltas: Sequence[DeltaLine], columns: int) -> list[str]:
    rows = [rf"\multicolumn{{{columns}}}{{l}}{{\textit{{$\Delta$m\%}}}} \\"]
    rows.append(_row(["overall", "", *(_delta(line.overall) for line in deltas), ""]))
    for group in deltas[0].groups:
        rows.append(_row([escaped(group), "", *(_delta(line.groups[group]) for line in deltas), ""]))
    return rows


def _delta(delta: Delta) -> str:
    value, sign, error = delta.text.partition(" ± ")
    text = escaped(value) + (rf" {{\scriptsize $\pm$ {error}}}" if sign else "")
    return rf"({text})" if delta.verdict == UNRESOLVED else text


def _caption(lines: Sequence[Line], about: Caption) -> str:
    sizes = sorted({line.n for line in lines if line.n})
    n = "" if not sizes else f"$n = {sizes[0]}$" if len(sizes) == 1 else f"$n = {sizes[0]}$ to ${sizes[-1]}$"
    text = (
        rf"Scores and $\Delta$m\% against {escaped(about.baseline)}; {n + ' test pictures; ' if n else ''}"
        rf"{escaped(about.date)}. $\pm$: one standard error; \textbf{{bold}}: best; \underline{{underlined}}: second "
        r"best; in brackets: a difference that is not resolved at 95\,\%."
    )
    levels = {cell.level for line in lines for cell in line.cells.values()}
    text += r" $^{\approx}$: no better than chance at 95\,\%." if AT in levels else ""
    text += r" $^{<}$: below chance." if BELOW in levels else ""
    return text + (" Rendered scenes: no evidence about natural images." if about.rendered else "")
