"""Turns scores into the table of models × metrics that Δm% is computed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from eval.delta_m import Metric, Table
from eval.estimate import Estimate, over_seeds_and_pictures
from eval.scores import MetricScore, Score


def names_of(scores: Sequence[Score]) -> list[str]:
    """Models in the order in which they were named."""
    return list(dict.fromkeys(score.model for score in scores))


def labels(scores: Sequence[Score], counting: bool | None) -> dict[tuple[str, str], Metric]:
    """(task, metric) → its column, of metrics that enter Δm%, of those that do not, or (None) of all.

    The task is named only where two tasks share a metric; what counts keeps its plain name before what does not.
    """
    pairs: dict[tuple[str, str], tuple[str, bool]] = {}
    for score in scores:
        for name, metric in score.metrics.items():
            pairs.setdefault((score.task, name), (score.group, metric.counts))
    for task in dict.fromkeys(score.task for score in scores):  # failed for every model: still a column that is missing
        own = [score for score in scores if score.task == task]
        if any(score.error for score in own) and not any(score.metrics for score in own):
            pairs[task, task] = own[0].group, own[0].counts
    counted = Counter((group, name) for (_, name), (group, counts) in pairs.items() if counts)
    every = Counter((group, name) for (_, name), (group, _) in pairs.items())
    return {
        (task, name): Metric(group, f"{name} ({task})" if (counted if counts else every)[group, name] > 1 else name)
        for (task, name), (group, counts) in pairs.items()
        if counting is None or counts == counting
    }


def delta_table(scores: Sequence[Score], counting: bool | None = True) -> Table:
    """Scores as a table of models × metrics; `counting` as of `labels`.

    Where some model has repetitions, they are the seeds, and probe seeds are averaged inside; else probe seeds are.
    """
    table = Table(models=names_of(scores))
    columns = labels(scores, counting)
    runs = run_labels(scores)
    for (task, name), metric in columns.items():
        for model in table.models:
            own = [s for s in scores if s.model == model and s.task == task]
            found = [(score, score.metrics[name]) for score in own if name in score.metrics]
            if not found:
                table.absent[model, metric] = next((reason(score) for score in own), "not scored")
                continue
            for seed, values in _by_seed(found, runs).items():
                table.add(model, metric, found[0][1].direction, float(np.mean(values)), seed)
            resamples = [figure.resamples for _, figure in found]
            errors = [figure.error for _, figure in found]
            if all(resamples) and len({len(own) for own in resamples}) == 1:
                table.resamples[model, metric] = np.mean(resamples, axis=0)
            elif None not in errors:  # of repetitions on the same pictures: together no better known than one
                table.errors[model, metric] = float(np.mean(errors))
        table.directions.setdefault(metric, "higher")  # nobody has a figure
    return table


def run_labels(scores: Sequence[Score]) -> dict[tuple[str, int], str]:
    """(model, repetition) → the label of that training, of models that have repetitions.

    The seed of the training where every repetition has one of its own: equal seeds began alike and saw the pictures in
    one order, so two models are compared seed by seed, wherever they stand on the command line. Else a label that no
    other model has, and the two are compared unpaired.
    """
    found: dict[tuple[str, int], str] = {}
    for model in names_of(scores):
        trained = {score.replicate: score.trained for score in scores if score.model == model}
        known = None not in trained.values() and len(set(trained.values())) == len(trained)
        if max(trained) > 0:
            found |= {(model, i): f"run {seed}" if known else f"{model}, run {i}" for i, seed in trained.items()}
    return found


def _by_seed(
    found: Sequence[tuple[Score, MetricScore]], runs: Mapping[tuple[str, int], str]
) -> dict[str | None, list[float]]:
    seeds: dict[str | None, list[float]] = {}
    for score, figure in found:
        probe = str(score.seed) if score.seeded and not runs else None
        seeds.setdefault(runs.get((score.model, score.replicate), probe), []).append(figure.value)
    return seeds


def reason(score: Score) -> str:
    """Why a score has no figures."""
    if score.error:
        return "failed: " + score.error.splitlines()[0]
    return score.not_applicable or "not scored"


def estimate(table: Table, model: str, metric: Metric) -> Estimate | None:
    """A cell: its mean over seeds, with an error over seeds and over resamples of the test pictures."""
    cell = table.values.get((model, metric))
    resamples, error = table.resamples.get((model, metric), ()), table.errors.get((model, metric))
    return over_seeds_and_pictures(list(cell.values()), resamples, error) if cell else None
