"""Turns an evaluation recipe and models into scores, running only what is missing."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval import rehearsal
from eval.config import EvalRecipe
from eval.datasets import DATASETS
from eval.datasets.split import Split
from eval.encoders import Model, device_name
from eval.examples import save_examples
from eval.feature_cache import FeatureCache
from eval.rehearsal import Rehearsal
from eval.scores import Score, libraries, recall, save, score_file, score_key, show
from eval.tasks import TASKS
from eval.tasks.task import Context, NotApplicable, TaskSettings
from radio_distill.console import duration
from teachers.errors import UserError
from teachers.features import identity_of
from teachers.section import Section


@dataclass
class Cell:
    """One (model, task, seed) of the table."""

    model: Model
    task: str  # its name in the recipe
    settings: TaskSettings
    seed: int
    file: Path

    @property
    def module(self):
        return TASKS[self.settings.task]


@dataclass
class Suite:
    """A recipe, opened: where its data, features and scores are; shortened where the data are rendered stand-ins."""

    recipe: EvalRecipe
    out: Path
    data_root: Path
    say: object = print
    commit: str = "unknown"
    rehearsal: Rehearsal | None = field(default=None, init=False)
    _splits: dict[tuple[str, str], Split] = field(default_factory=dict)

    def __post_init__(self):
        self.rehearsal = rehearsal.read(self.data_root)
        if self.rehearsal is not None:
            self.recipe = rehearsal.shortened(self.recipe, self.rehearsal, self.data_root)
        folder = Path(self.recipe.cache).expanduser()
        self.features = FeatureCache(folder, self.recipe.precision, self.recipe.batch, self.say)

    def split(self, data: str, part: str) -> Split:
        """The train or val part of a data set, opened once; `UserError` whatever its reader meets."""
        if (data, part) not in self._splits:
            config = self.recipe.datasets[data]
            try:
                split = DATASETS[config.kind].open_split(data, config, self.data_root, part)
            except UserError:
                raise
            except Exception as error:  # of a file that no reader foresaw: it must not cost the whole report
                raise UserError(f"{data}/{part} ({config.kind}) cannot be read: {_unforeseen(error)}") from error
            self._check_expected(split, config)
            self._splits[data, part] = split
        return self._splits[data, part]

    def _check_expected(self, split: Split, config: Section) -> None:
        try:
            check_expected(split, config)
        except UserError as error:
            if self.rehearsal is None:
                raise
            self.say(f"rehearsal: {error.what}; the recipe expects {error.expected.split(',')[0]}")

    def cells(self, models: Sequence[Model]) -> list[Cell]:
        """The whole table, model by model."""
        return [
            Cell(model, task, settings, seed, score_file(self.out / "scores", model.name, model.identity, task, seed))
            for model in models
            for task, settings in self.recipe.task_settings.items()
            for seed in seeds_of(settings)
        ]

    def context(self, cell: Cell) -> Context:
        def split(part: str) -> Split:
            return self.split(cell.settings.data, part)

        rehearsed = self.rehearsal is not None
        return Context(cell.model, cell.settings, cell.seed, split, self.features, cell.module.FIT, rehearsed)

    def data_identity(self, cell: Cell) -> str:
        """Of the parts that the task uses, and of how they are read; "absent" where they cannot be opened (the task
        will say why)."""
        config = self.recipe.datasets[cell.settings.data].model_dump(mode="json", exclude={"path", "get", "expect"})
        try:
            splits = [self.split(cell.settings.data, part) for part in cell.module.SPLITS]
        except Exception:  # whatever a reader meets: `score` meets it again and records it
            return "absent"
        parts = [part for split in splits for part in (split.identity, split.truth_identity) if part]
        return "+".join([*parts, identity_of({}, sorted(config.items()))])

    def key(self, cell: Cell) -> str:
        settings = self.settings(cell)
        data = self.data_identity(cell)
        identities = [cell.model.identity, *self.partners(cell)]
        return score_key(identities, cell.task, cell.module.VERSION, settings, data, cell.seed)

    def settings(self, cell: Cell) -> dict[str, Any]:
        """All that figures depend on and that a recipe says: the task's settings, and a precision that is not full."""
        precise = self.recipe.precision == "fp32"
        stood_in = {} if self.rehearsal is None else rehearsal.settings(self.rehearsal)
        return figures_settings(cell.settings) | ({} if precise else {"precision": self.recipe.precision}) | stood_in

    def partners(self, cell: Cell) -> list[str]:
        """Identities of the other encoders that the figures depend on."""
        try:
            return [encoder.identity for encoder in cell.module.partners(self.context(cell))]
        except Exception:  # nothing can be scored: `score` records why
            return []

    def found(self, cell: Cell) -> Score | None:
        """The score that is there, perhaps under another name of the model, or kept when another took its place."""
        folders = sorted(self.out.glob(f"scores/*-{cell.model.identity[:8]}"))
        score = recall([folder / cell.file.name for folder in folders], self.key(cell)) if folders else None
        return None if score is None else as_asked(score, cell)

    def run(self, models: Sequence[Model]) -> list[Score]:
        """Score what is missing; every cell's score, in order."""
        cells = self.cells(models)
        scores = [self.found(cell) for cell in cells]
        pending = [cell for cell, score in zip(cells, scores) if score is None]
        there = len(cells) - len(pending)
        self.say(f"{len(cells)} scores of {len(models)} models: {there} there, {len(pending)} to do")
        for cell in pending:
            self._announce(cell)
        begun = time.monotonic()
        fresh: dict[int, Score] = {}
        for number, cell in enumerate(pending, start=1):
            score = self.score(cell)
            fresh[id(cell)] = score
            spent = time.monotonic() - begun
            eta = f"  eta {duration(spent / number * (len(pending) - number))}" if number < len(pending) else ""
            self.say(f"[{number}/{len(pending)}] {_line(score)}  {score.seconds:.1f} s{eta}")
        return [score or fresh[id(cell)] for cell, score in zip(cells, scores)]

    def _announce(self, cell: Cell) -> None:
        """Tell the cache what this cell will read: one forward pass then serves all tasks."""
        try:
            context = self.context(cell)
            for encoder, part, output in cell.module.parts(context):
                self.features.want(encoder, context.view(part, encoder), [output])
        except Exception:  # `score` meets it again and records it
            pass

    def score(self, cell: Cell) -> Score:
        """Run one cell and write what comes of it, whatever that is."""
        begun = time.monotonic()
        metrics, facts, examples, reason, failure = {}, {}, [], None, None
        try:
            context = self.context(cell)
            facts["size"] = list(context.size)
            cell.module.parts(context)
            result = cell.module.run(context)
            metrics, facts, examples = result.metrics, facts | result.facts, result.examples
        except NotApplicable as why:
            reason = str(why)
        except UserError as error:
            failure = str(error)
        except Exception as error:  # one broken task must not cost the others' hours
            failure = _unforeseen(error)
        score = Score(
            model=cell.model.name, replicate=cell.model.replicate, trained=cell.model.trained,
            identity=cell.model.identity, partners=self.partners(cell), task=cell.task, kind=cell.settings.task,
            group=cell.module.GROUP, counts=cell.module.COUNTS, protocol=cell.module.VERSION,
            data=cell.settings.data, data_identity=self.data_identity(cell),
            settings=self.settings(cell),
            seed=cell.seed, seeded=cell.module.SEEDED, metrics=metrics, facts=facts, not_applicable=reason,
            error=failure, commit=self.commit, libraries=libraries(device_name(cell.model.encoder)),
            date=time.strftime("%Y-%m-%d %H:%M:%S"), seconds=round(time.monotonic() - begun, 2),
        )  # fmt: skip
        save_examples(examples, save(score, cell.file))
        return as_asked(score, cell)


def check_expected(split: Split, config: Section) -> None:
    """Raise `UserError` where a part of a data set is not what the recipe knows it to be."""
    expected, limit = getattr(config.expect, split.part), getattr(config, f"{split.part}_limit", None)
    key = f"data.{split.data}.expect.{split.part}"
    count = expected.count if limit is None or expected.count is None else min(limit, expected.count)
    if count is not None and split.count != count:
        raise UserError(
            f"{split} ({split.source}) holds {split.count} pictures",
            expected=f"{count}, as the recipe's {key}.count says",
            todo="complete the data set; if yours is meant to be another, change that key",
        )
    if limit is None and expected.identity is not None and split.identity != expected.identity:
        raise UserError(
            f"{split} ({split.source}) is another set of files: its checksum is {split.identity}",
            expected=f"{expected.identity}, as the recipe's {key}.identity says",
            todo="complete the data set; if yours is meant to be another, change that key",
        )


def as_asked(score: Score, cell: Cell) -> Score:
    """A score as this recipe names and counts it; the file keeps what the task itself says."""
    settings, metrics = cell.settings, score.metrics
    counting = score.counts if settings.counts is None else settings.counts
    # Out of Δm%, or in with what the task itself counts: all of it, if it counts nothing but is told to.
    some = settings.counts is None or any(metric.counts for metric in metrics.values())
    metrics = {
        name: metric.model_copy(update={"counts": counting and (metric.counts or not some)})
        for name, metric in metrics.items()
    }
    changes = {"model": cell.model.name, "replicate": cell.model.replicate, "trained": cell.model.trained}
    changes |= {"metrics": metrics, "group": settings.group or score.group, "counts": counting}
    return score.model_copy(update=changes)


def figures_settings(settings: TaskSettings) -> dict[str, Any]:
    """The settings that figures depend on: not which seeds are asked for, nor where the report puts them."""
    return settings.model_dump(mode="json", exclude={"seeds", "group", "counts"})


def seeds_of(settings: TaskSettings) -> list[int]:
    """The seeds that a task is scored for; 0 for one that draws nothing."""
    return settings.seeds if TASKS[settings.task].SEEDED else [0]


def _unforeseen(error: Exception) -> str:
    """An error that nobody put into words: its type, its message, and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"


def _line(score: Score) -> str:
    head = f"{score.model}  {score.task}" + (f" seed {score.seed}" if score.seeded else "")
    if score.error:
        return f"{head}  FAILED: {score.error.splitlines()[0]}"
    if score.not_applicable:
        return f"{head}  n/a: {score.not_applicable}"
    shown = [f"{name} {show(metric.value, metric.unit)}" for name, metric in score.metrics.items()]
    return f"{head}  " + ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")
