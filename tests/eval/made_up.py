"""Scores without models behind them: what a report is given, at values that a test chooses."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

from worlds import Noise

from eval.config import load_recipe
from eval.delta_m import compare
from eval.encoders import Model
from eval.report import write
from eval.scores import MetricScore, Score
from eval.suite import Suite
from eval.tables import delta_table, names_of
from teachers.seeding import numpy_rng

RECIPE = """
data: {tabletop: {kind: tabletop, size: 32, train: 8, val: 8}}
tasks:
  knn: {task: knn, data: tabletop}
  probe: {task: segmentation, data: tabletop}
  pairs: {task: retrieval, data: tabletop}
"""
NO_PICTURES = {"delta": [], "resolution": [], "answers": [], "features": []}


def figure(value, spread=1.0, **about) -> MetricScore:
    """A metric whose resamples deviate by exactly `spread` (none: no resamples), alike for figures of one spread."""
    drawn = numpy_rng("made up", about.pop("draw", 0)).standard_normal(200)
    drawn = (drawn - drawn.mean()) / drawn.std(ddof=1)
    resamples = [] if spread is None else [float(value + spread * x) for x in drawn]
    return MetricScore(**{"value": value, "direction": "higher", "unit": "%", "n": 200, "resamples": resamples} | about)


def score(model, task="knn", metrics=None, **about) -> Score:
    """What a task found for `model`."""
    plain = {
        "model": model, "replicate": 0, "identity": f"{model}-0123456789", "partners": [], "task": task, "kind": "knn",
        "protocol": 1, "group": "Classification", "data": "tabletop", "data_identity": "d", "settings": {"size": 32},
        "seed": 0, "seeded": False, "metrics": {"top-1": figure(50.0)} if metrics is None else metrics,
        "facts": {"size": [32, 32]}, "commit": "c0ffee", "libraries": {"torch": "2.14"}, "date": "2026-01-01 00:00:00",
        "seconds": 1.5,
    }  # fmt: skip
    return Score(**plain | about)


def three_groups(values: dict[str, tuple[float, float, float]], spread=0.5, **about) -> list[Score]:
    """Model → its figures in three groups; `about` of every figure."""
    names = {"knn": ("Classification", "top-1"), "probe": ("Dense", "mIoU"), "pairs": ("Retrieval", "R@1")}
    return [
        score(model, task, {name: figure(value, spread, draw=(model, task), **about)}, group=group)
        for model, row in values.items()
        for (task, (group, name)), value in zip(names.items(), row)
    ]


def report(
    folder: Path, scores: list[Score], baseline: str | None = None, table=None, drawn: bool = False, **about
) -> dict[str, str]:
    """Name → text of the files that a report of `scores` writes; `baseline`: the first model, if none is named."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trial.yaml").write_text(about.pop("recipe", RECIPE) + f"cache: {folder / 'cache'}\n")
    recipe, _ = load_recipe(folder / "trial.yaml")
    suite = Suite(recipe, folder / "out", folder, say=lambda *_: None)
    named = names_of(scores)
    models = [Model(name, f"teacher:{name}", Noise(name)) for name in about.pop("models", named)]
    table = delta_table(scores) if table is None else table
    baseline = named[0] if baseline is None else baseline
    rows = compare(table, baseline, undefined="missing") if table.directions else []
    about = {"title": "trial", "command": "python -m eval trial.yaml", "common": False} | about
    with nullcontext() if drawn else patch("eval.report.page._pictures", return_value=NO_PICTURES):  # they take time
        write(suite, models, scores, table, rows, baseline=baseline, **about)
    return {
        file.name: file.read_text() for file in suite.out.iterdir() if file.suffix in (".md", ".html", ".csv", ".tex")
    }
