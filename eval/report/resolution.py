"""Turns scores of one task at several sizes into curves: a metric against the pixels that a model was shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.estimate import Estimate
from eval.plots import GRID, SOFT, WIDTH, Look
from eval.report.illustration import Illustration, chart
from eval.report.lines import ARROWS
from eval.scores import MetricScore, Score
from eval.tables import delta_table, estimate, labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Size = tuple[int, int]
CHANCE = Look(SOFT, ":", "_")


@dataclass(frozen=True)
class Point:
    """A model's figure at one size."""

    size: Size  # height, width that the model was really shown
    mean: float
    error: float  # one standard error, 0 where there is none
    chance: float | None

    @property
    def side(self) -> float:
        """Of the square with as many pixels."""
        return (self.size[0] * self.size[1]) ** 0.5


def families(scores: Sequence[Score]) -> list[list[str]]:
    """Names of tasks that differ in the size of their pictures alone, two or more."""
    found: dict[str, list[str]] = {}
    for score in scores:
        settings = {key: value for key, value in score.settings.items() if key != "size"}
        if "size" not in score.settings:
            continue
        tasks = found.setdefault(json.dumps([score.kind, score.protocol, score.data, settings], sort_keys=True), [])
        if score.task not in tasks:
            tasks.append(score.task)
    return [tasks for tasks in found.values() if len(tasks) > 1]


def curves(scores: Sequence[Score], looks: Mapping[str, Look]) -> list[Illustration]:
    """A figure a family of tasks; none for one that no model was shown at two sizes (each took its own instead)."""
    own = [[score for score in scores if score.task in tasks] for tasks in families(scores)]
    return [found for family in own if (found := _curve(family, looks)) is not None]


def _curve(scores: Sequence[Score], looks: Mapping[str, Look]) -> Illustration | None:
    metrics = {name: found for name in _metrics(scores) if (found := points(scores, name))}
    if not any(len(line) > 1 for lines in metrics.values() for line in lines.values()):
        return None
    figures = {name: figure for score in scores for name, figure in score.metrics.items()}
    drawn = draw(metrics, {name: _title(name, figures[name]) for name in metrics}, looks)
    kind = scores[0].kind.replace("_", " ")
    caption = (
        f"{kind} on {scores[0].data}, at the size that each model was really shown; bands are one standard error. "
        "A model that takes one size only is a single point."
    )
    return chart(f"resolution {scores[0].task}", drawn, caption, f"{kind} against the pictures' size, a line a model")


def _title(name: str, figure: MetricScore) -> str:
    return f"{name} {ARROWS[figure.direction]}" + (f", {figure.unit.strip()}" if figure.unit else "")


def _metrics(scores: Sequence[Score]) -> list[str]:
    """Those that enter Δm% at some size; the first one where none does."""
    every = {name: figure for score in scores for name, figure in score.metrics.items()}
    counting = {name for score in scores for name, figure in score.metrics.items() if figure.counts}
    return [name for name in every if name in counting] or list(every)[:1]


def points(scores: Sequence[Score], name: str) -> dict[str, list[Point]]:
    """Model → its figures, from the smallest size to the largest; one a size."""
    table = delta_table(scores, None)
    lines: dict[str, dict[Size, Point]] = {model: {} for model in table.models}
    for (task, metric), column in labels(scores, None).items():
        for model in table.models if metric == name else ():
            own = [s for s in scores if s.model == model and s.task == task and name in s.metrics and "size" in s.facts]
            if own:
                point = _point(own[0], own[0].metrics[name], estimate(table, model, column))
                lines[model].setdefault(point.size, point)
    return {model: sorted(line.values(), key=lambda point: point.side) for model, line in lines.items() if line}


def _point(score: Score, figure: MetricScore, found: Estimate) -> Point:
    return Point(tuple(score.facts["size"]), found.mean, found.error or 0.0, figure.chance)


def draw(
    metrics: Mapping[str, Mapping[str, list[Point]]], names: Mapping[str, str], looks: Mapping[str, Look]
) -> Figure:
    """Metric → model → points; a panel a metric, one below the other."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(model for lines in metrics.values() for model in lines))
    legend = 0.2 * ((len(models) + 1) // 2)
    figure = Figure(figsize=(WIDTH, 0.5 + legend + 2.3 * len(metrics)), layout="constrained")
    panels = figure.subplots(len(metrics), sharex=True, squeeze=False)[:, 0]
    for axes, (name, lines) in zip(panels, metrics.items()):
        for model, line in lines.items():
            _line(axes, line, looks[model])
        _chance(axes, [point for line in lines.values() for point in line])
        axes.set_ylabel(names[name], fontsize=8)
    _dress(panels, [point for lines in metrics.values() for line in lines.values() for point in line])
    handles = [*(_handle(looks[model], model) for model in models), _handle(CHANCE, "chance")]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=8, frameon=False, handlelength=3)
    return figure


def _line(axes: Axes, line: Sequence[Point], look: Look) -> None:
    """A curve in its band; a single point has whiskers instead."""
    sides, means = [point.side for point in line], [point.mean for point in line]
    whiskers = [line[0].error] if len(line) == 1 else None
    axes.errorbar(sides, means, whiskers, color=look.colour, linestyle=look.line, marker=look.marker, markersize=4,
                  linewidth=1.4, elinewidth=0.8)  # fmt: skip
    low, high = ([point.mean + sign * point.error for point in line] for sign in (-1, 1))
    axes.fill_between(sides, low, high, color=look.colour, alpha=0.12, linewidth=0)


def _chance(axes: Axes, points: Sequence[Point]) -> None:
    """Its line, unless that would squeeze all curves into a corner: then it is said."""
    chance = sorted({point.side: point.chance for point in points if point.chance is not None}.items())
    if not chance:
        return
    low, high = axes.get_ylim()
    if all(low - (high - low) <= value <= high + (high - low) for _, value in chance):
        axes.plot(*zip(*chance), color=CHANCE.colour, linestyle=CHANCE.line, marker=CHANCE.marker)
        return
    text = f"chance, {_range([value for _, value in chance])}, is off the axis"
    axes.annotate(text, (0.02, 0.03), xycoords="axes fraction", fontsize=7, color=SOFT)


def _range(values: Sequence[float]) -> str:
    ends = f"{min(values):.3g}", f"{max(values):.3g}"
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _handle(look: Look, model: str):
    from matplotlib.lines import Line2D

    return Line2D([], [], color=look.colour, linestyle=look.line, marker=look.marker, markersize=4, label=model)


def _dress(panels: Sequence[Axes], points: Sequence[Point]) -> None:
    from matplotlib.ticker import NullLocator

    ticks = {point.side: f"{point.size[0]}" if point.size[0] == point.size[1] else "{}×{}".format(*point.size)
             for point in points}  # fmt: skip
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.margins(x=0.08)
        axes.tick_params(labelsize=8)
        axes.grid(linewidth=0.4, color=GRID)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[-1].set_xlabel("pixels a side (height × width where they differ)", fontsize=8)
