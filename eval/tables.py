"""Turns scores into tables: the one that Δm% is computed from, and the rows that the report prints."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.delta_m import SIGNS, Metric, Row, Table
from eval.scores import MetricScore, Score, show

ARROWS = {"higher": "↑", "lower": "↓"}
COLUMNS = (  # of scores.csv
    "model", "replicate", "group", "task", "kind", "protocol", "metric", "direction", "value", "unit", "chance", "n",
    "in_delta", "seed", "data", "size", "identity", "commit", "date", "seconds", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One figure as the report prints it."""

    text: str  # 52.3, or n/a
    error: str = ""  # ± 2.9
    mark: str = ""  # best, second
    note: str = ""  # why it is n/a


@dataclass(frozen=True)
class Line:
    """One metric: a row of the table of scores."""

    group: str
    name: str
    arrow: str
    unit: str
    chance: str
    n: int
    cells: dict[str, Cell]  # by model


def names_of(scores: Sequence[Score]) -> list[str]:
    """Models in the order in which they were named."""
    return list(dict.fromkeys(score.model for score in scores))


def labels(scores: Sequence[Score], counting: bool) -> dict[tuple[str, str], Metric]:
    """(task, metric) → its column; the task is named only where two tasks share a metric."""
    pairs: dict[tuple[str, str], str] = {}
    for score in scores:
        for name, metric in score.metrics.items():
            if metric.counts == counting:
                pairs.setdefault((score.task, name), score.group)
    for task in dict.fromkeys(score.task for score in scores):  # failed for every model: still a column that is missing
        own = [score for score in scores if score.task == task]
        failed = any(score.error for score in own) and not any(score.metrics for score in own)
        if failed and counting == own[0].counts:
            pairs[task, task] = own[0].group
    shared = Counter((group, name) for (_, name), group in pairs.items())
    return {
        (task, name): Metric(group, f"{name} ({task})" if shared[group, name] > 1 else name)
        for (task, name), group in pairs.items()
    }


def delta_table(scores: Sequence[Score], counting: bool = True) -> Table:
    """Scores as a table of models × metrics.

    Where some model has repetitions, they are the seeds, and probe seeds are averaged inside; else probe seeds are.
    """
    table = Table(models=names_of(scores))
    columns = labels(scores, counting)
    repeated = {name for name in table.models if max(s.replicate for s in scores if s.model == name) > 0}
    for (task, name), metric in columns.items():
        for model in table.models:
            own = [s for s in scores if s.model == model and s.task == task]
            found = [(score, score.metrics[name]) for score in own if name in score.metrics]
            if not found:
                table.absent[model, metric] = next((_reason(score) for score in own), "not scored")
                continue
            for seed, values in _by_seed(found, model in repeated, bool(repeated)).items():
                table.add(model, metric, found[0][1].direction, float(np.mean(values)), seed)
            resamples = [figure.resamples for _, figure in found]
            if all(resamples) and len({len(own) for own in resamples}) == 1:
                table.resamples[model, metric] = np.mean(resamples, axis=0)
        table.directions.setdefault(metric, "higher")  # nobody has a figure
    return table


def _by_seed(
    found: Sequence[tuple[Score, MetricScore]], repeated: bool, any_repeated: bool
) -> dict[str | None, list[float]]:
    seeds: dict[str | None, list[float]] = {}
    for score, figure in found:
        probe = str(score.seed) if score.seeded and not any_repeated else None
        seeds.setdefault(f"run {score.replicate}" if repeated else probe, []).append(figure.value)
    return seeds


def _reason(score: Score) -> str:
    if score.error:
        return "failed: " + score.error.splitlines()[0]
    return score.not_applicable or "not scored"


def lines(scores: Sequence[Score], counting: bool) -> list[Line]:
    """The table of scores: metrics that enter Δm% (`counting`), or those that are only shown."""
    table = delta_table(scores, counting)
    rows = []
    for (task, name), metric in labels(scores, counting).items():
        figure = next((s.metrics[name] for s in scores if s.task == task and name in s.metrics), None)
        unit = figure.unit if figure else ""
        cells = _marked(table, metric, {model: _cell(table, model, metric, unit) for model in table.models})
        chance = _plain(figure.chance, unit) if figure and figure.chance is not None else "–"
        arrow, n = (ARROWS[figure.direction], figure.n) if figure else ("", 0)
        rows.append(Line(metric.group, metric.name, arrow, unit, chance, n, cells))
    order = list(dict.fromkeys(row.group for row in rows))
    return sorted(rows, key=lambda row: order.index(row.group))


def _plain(value: float, unit: str) -> str:
    return show(value, unit).rstrip("%")


def _cell(table: Table, model: str, metric: Metric, unit: str) -> Cell:
    value = table.mean(model, metric)
    if value is None:
        return Cell("n/a", note=table.absent.get((model, metric), "not scored"))
    error = standard_error(table, model, metric)
    return Cell(_plain(value, unit), "" if error is None else f"± {_plain(error, unit)}")


def standard_error(table: Table, model: str, metric: Metric) -> float | None:
    """Of a cell: over its seeds and over resamples of the test pictures; None where there is neither."""
    values = list(table.values[model, metric].values())
    resamples = table.resamples.get((model, metric))
    if len(values) < 2 and resamples is None:
        return None
    variance = np.var(values, ddof=1) / len(values) if len(values) > 1 else 0.0
    return float(np.sqrt(variance + (0.0 if resamples is None else np.var(resamples, ddof=1))))


def _marked(table: Table, metric: Metric, cells: dict[str, Cell]) -> dict[str, Cell]:
    """The best figure marked, and of three or more the second best; equal ones (as printed) share a place."""
    sign = SIGNS[table.directions[metric]]
    printed = {model: float(cell.text) for model, cell in cells.items() if cell.text != "n/a"}
    places = sorted({sign * value for value in printed.values()}, reverse=True)
    marks = dict(zip(places, ("best", "second")[: len(places) - 1]))
    return {
        model: Cell(cell.text, cell.error, marks.get(sign * printed[model], "") if model in printed else "", cell.note)
        for model, cell in cells.items()
    }


def coverage(rows: Sequence[Row], scores: Sequence[Score]) -> str:
    """`all 4 models have all 9 metrics`, or who lacks what; and which tasks none of them could be asked."""
    total = len(rows[0].metrics)
    partial = [row for row in rows if row.missing]
    tasks = dict.fromkeys(score.task for score in scores if score.counts)
    silent = [task for task in tasks if all(score.not_applicable for score in scores if score.task == task)]
    tail = f" (applicable to none: {', '.join(silent)})" if silent else ""
    if not partial:
        return f"all {len(rows)} models have all {total} metrics{tail}"
    alike: dict[str, list[str]] = {}
    for row in partial:
        alike.setdefault(row.coverage, []).append(row.model)
    complete = len(rows) - len(partial)
    head = f"{complete} of {len(rows)} models have all {total} metrics{tail}; " if complete else ""
    every = [f"all {len(rows)} models" if len(found) == len(rows) else ", ".join(found) for found in alike.values()]
    return head + "; ".join(f"{who}: {text}" for who, text in zip(every, alike)) + ("" if complete else tail)


def scores_csv(scores: Sequence[Score]) -> str:
    """Every figure with its circumstances, one a line; what failed or does not apply has a line too."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for score in scores:
        row = score.model_dump(include=set(COLUMNS)) | {
            "seed": score.seed if score.seeded else "",
            "size": "x".join(map(str, score.facts["size"])) if "size" in score.facts else "",
            "note": "" if score.metrics else _reason(score),
        }
        for name, figure in score.metrics.items() or [("", None)]:
            extra = {} if figure is None else figure.model_dump(exclude={"resamples", "counts"})
            counts = {} if figure is None else {"in_delta": "yes" if figure.counts else "no"}
            writer.writerow(row | {"metric": name} | extra | counts)
    return buffer.getvalue()


def delta_csv(table: Table) -> str:
    """The table as `python -m eval delta` reads it, so that anybody can recompute Δm%."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["model", "group", "metric", "direction", "value", "seed"])
    for (model, metric), cell in table.values.items():
        for seed, value in cell.items():
            writer.writerow([model, *metric, table.directions[metric], repr(value), "" if seed is None else seed])
    return buffer.getvalue()
