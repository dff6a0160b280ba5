"""Turns scores into the lines of the table of scores: text, ±, best and second best, and what is no better than chance.

A figure is "≈ chance" where its 95 % interval holds chance (without an interval: where it equals it), and "below
chance" where it is worse than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from eval import published
from eval.delta_m import SIGNS, Metric, Table
from eval.estimate import Estimate
from eval.scores import MetricScore, Score
from eval.tables import estimate, labels

ARROWS = {"higher": "↑", "lower": "↓"}
DECIMALS = {"%": 1, "°": 2}  # 3 of any other unit
AT, BELOW = "≈ chance", "below chance"


@dataclass(frozen=True)
class Cell:
    """One figure as the report prints it."""

    text: str  # 52.3, or n/a
    error: str = ""  # ± 2.9
    mark: str = ""  # best, second
    level: str = ""  # ≈ chance, below chance
    note: str = ""  # why it is n/a


@dataclass(frozen=True)
class Line:
    """One metric: a row of the table of scores."""

    group: str
    name: str
    arrow: str
    unit: str
    chance: str
    n: int  # 0: unknown
    cells: dict[str, Cell]  # by model

    @property
    def metric(self) -> Metric:
        return Metric(self.group, self.name)


def lines(scores: Sequence[Score], table: Table, counting: bool) -> list[Line]:
    """A line a metric of `table`, which is made of the scores' metrics that count (or of those that do not).

    Rows of `table` that have no scores (published ones) have their cells too.
    """
    keys = {metric: key for key, metric in labels(scores, counting).items()}
    return [_line(table, metric, _figures(scores, *keys[metric]) if metric in keys else {}) for metric in table.metrics]


def _figures(scores: Sequence[Score], task: str, name: str) -> dict[str, MetricScore]:
    """Model → its figure of a metric, of several seeds the first."""
    return {s.model: s.metrics[name] for s in reversed(scores) if s.task == task and name in s.metrics}


def _line(table: Table, metric: Metric, figures: dict[str, MetricScore]) -> Line:
    figure = next((figures[model] for model in table.models if model in figures), None)
    unit = figure.unit.strip() if figure else _published_unit(table, metric)
    found = {model: estimate(table, model, metric) for model in table.models}
    rounded = {model: round(value.mean, decimals(unit)) for model, value in found.items() if value is not None}
    marks = _marks(rounded, SIGNS[table.directions[metric]])
    cells = {
        model: Cell("n/a", note=table.absent.get((model, metric), "not scored"))
        if value is None
        else replace(_cell(value, unit, figures.get(model)), mark=marks[model], level=level(value, figures.get(model)))
        for model, value in found.items()
    }
    chance = "–" if figure is None or figure.chance is None else number(figure.chance, unit)
    arrow = ARROWS[table.directions[metric]] if rounded else ""
    return Line(*metric, arrow, unit, chance, figure.n if figure else 0, cells)


def _published_unit(table: Table, metric: Metric) -> str:
    """Of a metric that only a published row of the table has."""
    source = published.load()
    rows = [published.one(source, name)[0] for name in table.models if name.startswith(published.PREFIX)]
    columns = [column for name in rows for column in source.tables[name].columns]
    return next((column.unit for column in columns if column.metric == metric), "")


def _cell(value: Estimate, unit: str, figure: MetricScore | None) -> Cell:
    """A published figure (one without a score) is taken as exact, which is no error of 0."""
    error = None if figure is None else value.error
    return Cell(number(value.mean, unit), "" if error is None else f"± {number(error, unit)}")


def decimals(unit: str) -> int:
    """Of a figure in this unit."""
    return DECIMALS.get(unit, 3)


def number(value: float, unit: str) -> str:
    """A figure without its unit, which the line names; large ones (points of a benchmark) without decimals."""
    return f"{value:.{decimals(unit) if abs(value) < 1000 else 0}f}".replace("-", "−")


def level(value: Estimate, figure: MetricScore | None) -> str:
    """ "≈ chance", "below chance", or nothing where a figure is better than chance, or chance is not known."""
    if figure is None or figure.chance is None:
        return ""
    sign = SIGNS[figure.direction]
    above = [sign * (end - figure.chance) for end in value.interval or (value.mean, value.mean)]
    if min(above) > 0:
        return ""
    return BELOW if max(above) < 0 else AT


def _marks(rounded: dict[str, float], sign: float) -> dict[str, str]:
    """The best figure, and of three or more places the second best; equal ones (as printed) share a place."""
    places = sorted({sign * value for value in rounded.values()}, reverse=True)
    names = dict(zip(places, ("best", "second")[: len(places) - 1]))
    return {model: names.get(sign * value, "") for model, value in rounded.items()}
