"""Turns frozen feature maps and a loss into a trained head, and its answers: what every dense probe shares.

Shapes: N pictures, B of a step, D width, h w grid, L×L label grid, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from eval.datasets.split import Split
from eval.feature_cache import Stored
from eval.task_settings import TaskSettings
from teachers.errors import UserError
from teachers.seeding import Part, numpy_rng


class TrainSettings(TaskSettings):
    """What everything that is trained on frozen features can be told."""

    seeds: Annotated[list[int], Field(min_length=1)] = Field([0, 1, 2], description="of the probe; one score each")
    steps: Annotated[int, Field(ge=1)] = Field(400, description="of training")
    batch: Annotated[int, Field(ge=1)] = Field(32, description="pictures a step")
    lr: Annotated[float, Field(gt=0)] = Field(1e-2, description="peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-3, description="of the probe")
    warmup: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="share of the steps; the rate rises in it")


Side = Annotated[int, Field(ge=1)]
Cells = Side | tuple[Side, Side]  # of a label grid: of a square one, or [rows, columns]
LABELS = "side of the label grid in training, or [rows, columns]"


class ProbeSettings(TrainSettings):
    """What every dense probe can be told."""

    labels: Cells = Field(32, description=LABELS)


def cells(labels: Cells, times: int = 1) -> tuple[int, int]:
    """Rows and columns of a label grid, or of one `times` as fine."""
    rows, columns = (labels, labels) if isinstance(labels, int) else labels
    return times * rows, times * columns


def linear_head(width: int, outputs: int) -> nn.Module:
    """B×D×h×w → B×C×h×w: batch norm, then a 1×1 convolution."""
    return nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, outputs, 1))


def train(
    head: nn.Module,
    features: Stored,
    loss: Callable[[Tensor, Tensor], Tensor],
    settings: TrainSettings,
    order: tuple[Part, ...],
    device: torch.device | str = "cpu",
    clip: float | None = None,
) -> nn.Module:
    """Train `head` on stored maps with AdamW and a cosine rate; returned in eval mode, on `device`.

    Args:
        loss: (the head's answer to a batch of maps, the numbers of its pictures B) → a scalar.
        order: names the generator that draws the order of pictures.
        clip: of the gradient's norm; none = not clipped.
    """
    head = head.to(device).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    rising = max(round(settings.warmup * settings.steps), 0)

    def rate(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + np.cos(np.pi * (step - rising) / max(settings.steps - rising, 1)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    rng, epochs = numpy_rng(*order), -(-settings.steps * settings.batch // len(features))
    numbers = np.concatenate([rng.permutation(len(features)) for _ in range(epochs)])
    for step in range(settings.steps):
        chosen = torch.from_numpy(numbers[step * settings.batch : (step + 1) * settings.batch])
        value = loss(head(features[chosen].to(device)), chosen)
        if not torch.isfinite(value):
            raise UserError(
                f"the probe's loss is {value.item()} at step {step}",
                expected="a finite loss", todo=f"a smaller lr than {settings.lr:g}",
            )  # fmt: skip
        optimizer.zero_grad()
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(head.parameters(), clip)
        optimizer.step()
        schedule.step()
    return head.eval()


@torch.no_grad()
def answers(head: nn.Module, features: Stored, batch: int = 64) -> Iterator[Tensor]:
    """What a trained head says of each picture in order, C×h×w, one at a time, on the head's device.

    Args:
        batch: pictures computed at once: a large head's memory.
    """
    device = next(head.parameters()).device
    for maps in features.chunks():
        for block in maps.split(batch):
            yield from head(block.to(device))


def label_grid(split: Split, kind: str, labels: Cells) -> Tensor:
    """Masks (`kind`: mask, parts, ...) of a split at the centres of a grid's cells, N×rows×columns uint8."""
    truth, size = split.truth(kind), cells(labels)
    grids = [F.interpolate(truth(i)[None, None].float(), size, mode="nearest-exact") for i in range(split.count)]
    return torch.cat(grids)[:, 0].to(torch.uint8)


def value_grid(split: Split, kind: str, labels: Cells) -> Tensor:
    """Depth or normals of a split at the centres of a grid's cells, N×C×rows×columns float, NaN where unknown."""
    truth, size = split.truth(kind), cells(labels)
    maps = (truth(i) for i in range(split.count))
    maps = (values[None] if values.ndim == 2 else values for values in maps)
    return torch.cat([F.interpolate(values[None].float(), size, mode="nearest-exact") for values in maps])
