"""A recipe's `task` → the objective that the loop trains, and what the loop asks of any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from radio_distill.engine import World, autocast, choose_precision
from radio_distill.recipe import Recipe
from radio_distill.targets import Teacher, load_teacher
from teachers.features import Encoder, Size

if TYPE_CHECKING:
    from PIL.Image import Image

    from featsharp.task import SharpenObjective
    from radio_distill.views import Batch


class Objective(Protocol):
    """What is trained, and towards what; `DistillObjective` and `featsharp.task.SharpenObjective` are the two."""

    model: nn.Module  # everything trainable, as one module

    def sizes(self, stream: str, index: int) -> list[Size]:
        """Image sizes that batch `index` of a stream must carry: deterministic, the same on all ranks."""

    def begin_stage(self, number: int, batches: Callable[[], Iterable[Batch]], note: str) -> Mapping[str, Any]:
        """Before a stage's first step: fit what must be known of the teachers; returns facts to print.

        `batches` begins the stage's first stream anew, with crops that training does not see; `note` names that data
        for a cache.
        """

    def after_step(self, step: int) -> None:
        """The weights have just been stepped to those of `step` finished steps; with optim.ema they are whole here."""

    def param_groups(self, lr: float, weight_decay: float) -> list[dict]:
        """The optimiser's groups; a group's `lr_scale` multiplies the schedule for it, and its `part` ("trunk") can be
        frozen."""

    def losses(
        self, model: nn.Module, batch: Batch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """The loss of one batch and its parts by name, the same names on all ranks; `model` is `self.model` inside the
        engine."""

    def evaluate(self, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Label-free figures on held-out batches."""

    def pictures(self, batch: Batch) -> Mapping[str, Image]:
        """PCA pictures by name."""

    def state(self) -> Mapping[str, Tensor]:
        """All that the objective holds besides weights; saved with every checkpoint."""

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...

    def artefact(self, folder: Path) -> None:
        """Write what users load."""


def build_objective(recipe: Recipe, world: World, load: Callable[..., Teacher] = load_teacher) -> Objective:
    """Teachers are loaded here, by `load`: a missing weights file is reported before anything is trained."""
    precision = autocast(teachers_precision(recipe, world.device), world.device)
    say = print if world.first else _silent
    if recipe.task == "distill":
        from radio_distill.distill import DistillObjective

        return DistillObjective(recipe, world.device, precision, say, load)
    [(name, teacher)] = recipe.teachers.items()
    return build_sharpen_objective(recipe, load(name, teacher, world.device).base, world.device, precision, say)


def build_sharpen_objective(
    recipe: Recipe,
    encoder: Encoder,
    device: torch.device,
    precision: Callable[[], AbstractContextManager],
    say: Callable[[str], None] = print,
) -> SharpenObjective:
    """The objective of a `task: sharpen` around its teacher."""
    from featsharp.task import SharpenObjective

    [teacher] = recipe.teachers.values()
    return SharpenObjective(
        encoder,
        recipe.sharpener,
        seed=recipe.seed,
        statistics_batches=recipe.statistics.batches,
        cache=recipe.statistics.cache,
        device=device,
        precision=precision,
        say=say,
        built_from=teacher.model_dump(include={"encoder", "weights", "options"}),
    )


def teachers_precision(recipe: Recipe, device: torch.device) -> str:
    """`fp32` or `bf16`. Small frozen teachers gain nothing from bf16 on a CPU and lose digits of the target."""
    wanted = recipe.teacher_precision
    return "fp32" if wanted == "auto" and device.type == "cpu" else choose_precision(wanted, device)[0]


def _silent(text: str) -> None:
    """What the other ranks say."""
