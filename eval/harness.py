"""Turns result files of harnesses for vision-language models into scores that stand in one table with our own.

A file speaks of a language model that was trained on a vision encoder's features; the model whose name it is given
under is that encoder. What the file does not know (resamples of its questions) is not made up: a figure has the
standard error that the harness wrote, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.encoders import Model
from eval.harness_files import Benchmark, read
from eval.scores import MetricScore, Score
from teachers.errors import UserError
from teachers.features import identity_of

KIND, PROTOCOL_VERSION, GROUP = "imported", 1, "VQA"
PROTOCOL = (
    "Not measured here: figures that a harness for vision-language models wrote about a model built on this encoder. "
    "One metric of a benchmark enters Δm% (POPE F1, MME perception, ChartQA overall, else the first that the file "
    "names), others are shown; tasks of a group that has figures itself are shown. Shares are written as percentages."
)
FORM = "MODEL=FILE, where MODEL is the name of a model of this table"


def imported_scores(pairs: Sequence[str], models: Sequence[Model], group: str = GROUP) -> list[Score]:
    """`MODEL=FILE` of each pair → a score a benchmark, in their order.

    Models of one name are repetitions: the first file that has a benchmark belongs to the first of them, and so on.
    `UserError` for a name that no model has, a file too many, and figures that were made under other conditions.

    Args:
        group: the column of Δm% that they enter.
    """
    scores: list[Score] = []
    for pair in pairs:
        named, path = _parsed(pair, models)
        for benchmark in read(path):
            taken = sum(score.model == named[0].name and score.task == benchmark.name for score in scores)
            if taken == len(named):
                raise UserError(
                    f"{path}: {named[0].name} has figures of {benchmark.name} already",
                    expected="one file a benchmark for each model (and for each repetition of it)",
                )
            scores.append(_score(benchmark, named[taken], group))
    _check_conditions(scores)
    return scores


def _parsed(pair: str, models: Sequence[Model]) -> tuple[list[Model], Path]:
    """The models of the name before the `=` (a name may hold one itself: the longest that fits), and the file."""
    name = max((model.name for model in models if pair.startswith(f"{model.name}=")), key=len, default=None)
    if name is None:
        names = ", ".join(dict.fromkeys(model.name for model in models))
        raise UserError(f"--imported {pair}: no such model", expected=FORM, todo=f"name one of {names}")
    file = pair[len(name) + 1 :]
    if not file:
        raise UserError(f"--imported {pair}: no file", expected=FORM)
    return [model for model in models if model.name == name], Path(file).expanduser()


def _score(benchmark: Benchmark, model: Model, group: str) -> Score:
    main = next(iter(benchmark.figures))
    metrics = {
        f"{benchmark.name} {name}": MetricScore(
            value=figure.value, direction=figure.direction, unit=figure.unit, n=benchmark.n,
            counts=name == main and not benchmark.subtask, error=figure.stderr,
        )
        for name, figure in benchmark.figures.items()
    }  # fmt: skip
    facts = {**benchmark.facts, **benchmark.conditions}
    return Score(
        model=model.name, replicate=model.replicate, identity=model.identity, partners=[], task=benchmark.name,
        kind=KIND, group=group, counts=not benchmark.subtask, protocol=PROTOCOL_VERSION, data=benchmark.name,
        data_identity=identity_of({}, benchmark.name, _conditions(benchmark.conditions, benchmark.n)),
        settings={}, seed=0, seeded=False, metrics=metrics, facts=facts, commit="imported", libraries={},
        date=facts["date"], seconds=0.0,
    )  # fmt: skip


def _conditions(facts: dict[str, Any], n: int) -> dict[str, Any]:
    return {key: facts.get(key) for key in ("harness", "version", "n-shot")} | {"questions": n}


def _check_conditions(scores: Sequence[Score]) -> None:
    """Raise `UserError` where two models' figures of one benchmark cannot be compared."""
    seen: dict[str, Score] = {}
    for score in scores:
        first = seen.setdefault(score.task, score)
        mine, theirs = (_conditions(each.facts, next(iter(each.metrics.values())).n) for each in (score, first))
        for key in mine:
            if mine[key] != theirs[key]:
                raise UserError(
                    f"{score.task}: {key} is {mine[key]} in {score.facts['file']} ({score.model}) and {theirs[key]} "
                    f"in {first.facts['file']} ({first.model})",
                    expected="one benchmark under one name, run under the same conditions for every model",
                )
