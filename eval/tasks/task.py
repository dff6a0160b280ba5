"""What a task is: a module with its protocol as data, `parts` (the features it needs) and `run` (features → figures).

VERSION    raised whenever figures stop being comparable with earlier ones
GROUP      the column of Δm% that its metrics are averaged into, if the recipe names no other
COUNTS     whether its metrics enter Δm%, or are only shown, if the recipe does not say
SEEDED     whether figures depend on a seed (a probe's initialisation)
FIT        how pictures come to the model's size: "crop" (largest centred box), "stretch" (whole) or "pad" (whole, the
           aspect kept, padded below or on the right)
SPLITS     the parts of the data set that it uses
PROTOCOL   what is done, in words; printed in every report
Settings   its section of a recipe
partners(ctx) → other encoders that the figures depend on (a head's teacher): part of a score's key
parts(ctx) → [(encoder, split, part), ...]   asked for before `run`, so that one forward pass serves all tasks
run(ctx)   → Result
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from eval.datasets.split import Split
from eval.encoders import Model, device_of, nearest_size
from eval.feature_cache import FeatureCache, Stored, View
from eval.scores import MetricScore
from eval.task_settings import TaskSettings
from teachers.features import Encoder, Size

__all__ = [
    "Context", "Example", "Need", "NotApplicable", "Result", "TaskSettings", "alone", "chosen", "maps_of",
    "summaries_of",
]  # fmt: skip

Need = tuple[Encoder, str, str]  # encoder, split ("train" or "val"), part


class NotApplicable(Exception):
    """The model cannot be asked this question (no text tower, no heads); that is no failure."""


@dataclass
class Example:
    """One test picture for the report: as it is, the truth, and what the model made of it; H×W×3 uint8 each."""

    picture: np.ndarray
    truth: np.ndarray
    answer: np.ndarray


@dataclass
class Result:
    """What a task found."""

    metrics: dict[str, MetricScore]
    facts: dict[str, Any] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)  # of the pictures that `chosen` names


EXAMPLES = 4  # pictures that a task which shows its answers shows


def chosen(count: int) -> list[int]:
    """Which of `count` test pictures (or pairs) are shown: the same for every model, spread over all."""
    shown = min(EXAMPLES, count)
    return [index * count // shown for index in range(shown)]


@dataclass
class Context:
    """One model before one task."""

    model: Model
    settings: Any  # the task's Settings
    seed: int
    split: Callable[[str], Split]  # "train" or "val" → that part of the task's data
    cache: FeatureCache
    fit: str  # crop, stretch or pad
    rehearsed: bool = False  # on stand-ins: a size that is too large for the model is made smaller

    @property
    def size(self) -> Size:
        """The size that the model is shown."""
        wanted = self.settings.size
        return nearest_size(self.model.encoder, None if wanted == "native" else wanted, smaller=self.rehearsed)

    @property
    def device(self) -> torch.device:
        """Where the model is: large sets are compared, and probes trained, there."""
        return device_of(self.model.encoder)

    def view(self, part: str, encoder: Encoder) -> View:
        """A split as `encoder` sees it: the model at the task's size, any other (a teacher) at its own."""
        size = self.size if encoder is self.model.encoder else nearest_size(encoder, None)
        return View(self.split(part), size, self.fit)

    def features(self, part: str, output: str, encoder: Encoder | None = None) -> Stored:
        """`output` (such as `backbone.summary`) of all pictures of split `part`."""
        encoder = self.model.encoder if encoder is None else encoder
        return self.cache.get(encoder, self.view(part, encoder), output)


def alone(ctx: Context) -> list[Encoder]:
    """`partners` of a task that asks the model and nobody else."""
    return []


def maps_of(*splits: str) -> Callable[[Context], list[Need]]:
    """`parts` of a task that reads the backbone's feature maps of these splits."""
    return lambda ctx: [(ctx.model.encoder, split, "backbone.spatial") for split in splits]


def summaries_of(*splits: str) -> Callable[[Context], list[Need]]:
    """`parts` of a task that reads the backbone's summaries of these splits; not applicable to a model without."""

    def needs(ctx: Context) -> list[Need]:
        if ctx.model.encoder.dims.summary is None:
            raise NotApplicable("the model has no summary")
        return [(ctx.model.encoder, split, "backbone.summary") for split in splits]

    return needs
