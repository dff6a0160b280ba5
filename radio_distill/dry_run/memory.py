"""A recipe, its networks' sizes and what each needs while it runs → the bytes on one device in a stage, by what for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from radio_distill.dry_run.cost import TRAINED, Cost
from radio_distill.engine import zero_stage
from radio_distill.recipe import Recipe, StreamConfig
from teachers.features import Size

MOMENTS = 2  # numbers a parameter that each of our optimizers keeps
STEP_COPIES = 3  # of its largest tensor that the optimizer holds while it steps


@dataclass(frozen=True)
class Weights:
    """Bytes of networks, and what is trained."""

    frozen: int  # teachers and their sharpeners
    trained: int  # the student, or the sharpener: parameters and buffers
    parameters: int  # bytes of the trained parameters alone
    largest: int  # bytes of the largest of them


@dataclass(frozen=True)
class Memory:
    """Bytes on one device in a stage."""

    frozen: float
    trained: float
    optimizer: float
    average: float
    gradients: float  # a part of `working` from the first backward pass on
    working: float  # the most that is held besides weights and what the optimizer keeps

    @property
    def total(self) -> float:
        return sum(value for key, value in vars(self).items() if key != "gradients")

    def rows(self) -> dict[str, float]:
        """By the name that people read; what is empty is left out."""
        names = {
            "frozen": "teachers' weights", "trained": "trained weights", "optimizer": "optimizer state",
            "average": "averaged weights", "gradients": "gradients", "working": "peak of gradients and activations",
        }  # fmt: skip
        return {names[key]: value for key, value in vars(self).items() if value}


def stage_memory(recipe: Recipe, weights: Weights, costs: Sequence[Cost], stage: int, ranks: int) -> Memory:
    """The memory of a stage on each of `ranks` devices."""
    zero = zero_stage(recipe)
    parameters, gradients, moments = (1 / ranks if zero >= first else 1.0 for first in (3, 2, 1))
    gradients *= weights.parameters
    streams = list(recipe.streams_of(stage).items()) * recipe.optim.accumulate
    peaks = [gradients + STEP_COPIES * weights.largest]
    for number, (name, stream) in enumerate(streams):
        peak = max(_at_size(name, stream, size, costs, later=number > 0) for size in stream.size)
        # The first backward pass makes the gradients, while it frees what it needed; the others find them there.
        peaks.append(gradients + peak if number else peak)
    return Memory(
        frozen=weights.frozen,
        trained=weights.trained * parameters,
        optimizer=MOMENTS * weights.parameters * moments,
        average=weights.trained if recipe.optim.ema else 0,
        gradients=gradients,
        working=max(peaks),
    )


def _at_size(name: str, stream: StreamConfig, size: Size, costs: Sequence[Cost], later: bool) -> float:
    """The most that a micro-batch of a stream needs at a size: teachers one by one, then what is trained."""
    rows = [cost for cost in costs if (cost.stream, cost.student_size) == (name, size)]
    held = float(stream.batch * 3 * sum(h * w for h, w in {row.size for row in rows}))  # images, a byte a number
    peaks = []
    for row in sorted(rows, key=lambda row: row.passes.startswith(TRAINED)):
        peaks.append(held + (row.later if later else row.peak))
        held += row.result
    return max(peaks)
