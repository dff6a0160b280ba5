"""Turns what tasks kept of their test pictures into sheets: a row a picture; its truth, and each model's answer."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from eval.examples import load_examples
from eval.report.illustration import Illustration, pictures
from eval.report.sheet import sheet
from eval.scores import Score, load

CELL = 128  # pixels of a picture's longer side


def strips(folder: Path, scores: Sequence[Score]) -> list[Illustration]:
    """A sheet a task that has examples below `folder`, from the first seed (and the first repetition of a model).

    Of tasks of one kind on one data set (other sizes, say) those that count are shown, if any does.
    """
    found = {
        task: own for task in dict.fromkeys(score.task for score in scores) if (own := _answers(folder, scores, task))
    }
    first = {score.task: score for score in reversed(scores)}
    counting = {(first[task].kind, first[task].data) for task in found if first[task].counts}
    return [
        _sheet(first[task], own, list(dict.fromkeys(score.model for score in scores)))
        for task, own in found.items()
        if first[task].counts or (first[task].kind, first[task].data) not in counting
    ]


def _answers(folder: Path, scores: Sequence[Score], task: str) -> dict[str, dict[str, list[Image.Image]]]:
    """Model → rows of examples of its first score."""
    answers: dict[str, dict[str, list[Image.Image]]] = {}
    for score in scores:
        if score.task == task and score.metrics and score.model not in answers:
            file = file_of(score, folder)
            rows = None if file is None else load_examples(file)
            if rows is not None:
                answers[score.model] = rows
    return answers


def file_of(score: Score, folder: Path) -> Path | None:
    """Where a score stands, perhaps under another name of its model; None for one that no file holds (imported)."""
    pattern = f"*-{glob.escape(score.identity[:8])}/{glob.escape(score.task)}.seed{score.seed}.json"
    return next((file for file in sorted(folder.glob(pattern)) if load(file).key == score.key), None)


def _sheet(score: Score, answers: dict[str, dict[str, list[Image.Image]]], models: Sequence[str]) -> Illustration:
    rows = next(iter(answers.values()))
    count = len(rows["picture"])
    shown = {model: own for model, own in answers.items() if len(own["answer"]) == count}
    columns = [("picture", rows["picture"]), ("truth", rows["truth"])]
    columns += [(model, own["answer"]) for model, own in shown.items()]
    lacking = [model for model in models if model not in shown]
    caption = (
        f"{score.task}: {count} test pictures, the same for every model, spread over the set and not picked by hand."
    )
    caption += f" Seed {score.seed}." if score.seeded else ""
    caption += f" No answers to show: {', '.join(lacking)}." if lacking else ""
    return pictures(f"examples {score.task}", sheet(columns, CELL), caption,
                    f"test pictures, their truth and every model's answer: {score.task}", "webp")  # fmt: skip
