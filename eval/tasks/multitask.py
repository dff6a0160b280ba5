"""Frozen feature maps and several truths of every pixel → one head that predicts them all, and each one's figure.

What agglomerative models report as Pascal Context (semseg, parts, saliency, normals, boundary) and as NYUDv2 (semseg,
depth, normals, boundary).

Shapes: N pictures, B of a step, D width, h w grid, H W label grid, C channels of all outputs together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from eval.feature_cache import Stored
from eval.outputs import OUTPUTS
from eval.outputs.output import DenseSettings, Output, enlarged
from eval.paint import picture
from eval.probes import LABELS, Cells, answers, cells, train
from eval.tasks.task import Context, Example, Result, alone, chosen, maps_of
from teachers.section import Section
from teachers.seeding import seeded

VERSION = 2  # resamples leave out classes that they have lost
GROUP = "Multi-task"
COUNTS = True
SEEDED = True
FIT = "stretch"
SPLITS = ("train", "val")
CLIP = 10.0  # of the gradient's norm, as published
PROTOCOL = (
    "Backbone feature maps, frozen; one head predicts all quantities: BatchNorm(D), a 1×1 convolution to the hidden "
    "width, bilinear enlargement to the label grid (`labels`), a 3×3 convolution, BatchNorm and "
    "GELU, and a 1×1 convolution to each quantity. (Published heads read four layers of the backbone, each made D/4 "
    "wide, and the backbone is fine-tuned; a sharpened teacher has only its last map, and what is compared here is "
    "features, so every model is read from its last map, frozen.) Training: the weighted sum of the losses "
    "(cross-entropy of semantic classes and of parts; binary cross-entropy of saliency, both classes weighing the same "
    "in a batch; L1 distance of unit normals; L1 of depth; weighted binary cross-entropy of boundaries, at four times "
    "the label grid, where a cell is boundary if any of its pixels is); AdamW, cosine learning rate, gradients clipped "
    f"to norm {CLIP:g}, pictures whole, not augmented. Test: answers enlarged bilinearly to the picture's own size. "
    "Metrics, each over all test pixels pooled: mIoU over the classes that occur (background is class 0 of the parts); "
    "saliency maxF: precision and recall of all pixels together at thresholds 0.05, 0.10, …, the largest F with "
    "β² = 0.3 (the convention of ATRC and its successors; ASTMT and MTI-Net averaged precision and recall over "
    "pictures first, with β² = 1); normals: mean angular error; depth: RMSE; boundaries: odsF as BSDS defines it "
    "(thinned, matched one to one within a tolerance that is a share of the diagonal; one threshold for all pictures; "
    "no suppression of non-maxima first). Ignored and unknown pixels count for nothing. A seed decides the head's "
    "initialisation and the order of pictures. Chance: the training pixels' most frequent class; everything salient; "
    "the training pixels' median direction (which is least far from them on average) and mean depth; boundary scores "
    "drawn uniformly for each pixel. (A head that sees nothing still learns from its zero padding where in a picture "
    "things tend to be, and may score somewhat more.)"
)
Name = Literal["semseg", "parts", "saliency", "normals", "boundary", "depth"]


class Weights(Section):
    """Of each quantity's loss in their sum; the defaults are those of the literature."""

    semseg: Annotated[float, Field(gt=0)] = 1.0
    parts: Annotated[float, Field(gt=0)] = 2.0
    saliency: Annotated[float, Field(gt=0)] = 5.0
    normals: Annotated[float, Field(gt=0)] = 10.0
    boundary: Annotated[float, Field(gt=0)] = 50.0
    depth: Annotated[float, Field(gt=0)] = 1.0


class Settings(DenseSettings):
    """Several quantities of every pixel from one head."""

    task: Literal["multitask"]
    predict: Annotated[list[Name], Field(min_length=1)] = Field(
        description="quantities: semseg, parts, saliency, normals, boundary, depth"
    )
    weights: Weights = Field(Weights(), description="of the losses")
    hidden: Annotated[int, Field(ge=1)] = Field(256, description="width of the head")
    steps: Annotated[int, Field(ge=1)] = Field(4000, description="of training")
    batch: Annotated[int, Field(ge=1)] = Field(16, description="pictures a step")
    lr: Annotated[float, Field(gt=0)] = Field(2e-3, description="peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-6, description="of the head")
    labels: Cells = Field(128, description=f"{LABELS}; published: a quarter of the picture")

    @field_validator("predict")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise ValueError(f"named more than once: {', '.join(twice)}")
        return value


partners = alone
parts = maps_of(*SPLITS)


def run(ctx: Context) -> Result:
    train_split, val = ctx.split("train"), ctx.split("val")
    outputs = {name: OUTPUTS[name](train_split, val, ctx.settings) for name in ctx.settings.predict}
    head = fit(ctx.features("train", "backbone.spatial"), outputs, ctx.settings, ctx.seed, ctx.device)
    contributions: dict[str, list[np.ndarray]] = {name: [] for name in outputs}
    examples, shown = [], chosen(val.count)
    for index, answer in enumerate(answers(head, ctx.features("val", "backbone.spatial"), ctx.settings.batch)):
        given = by_output(answer, outputs)
        for name, output in outputs.items():
            contributions[name].append(output.judge(index, given[name]))
        if index in shown:
            painted = [output.paint(index, given[name]) for name, output in outputs.items()]
            truths, answered = zip(*painted)
            examples.append(Example(picture(val, index), mosaic(truths), mosaic(answered)))
    sums = {name: np.stack(rows) for name, rows in contributions.items()}
    metrics = {output.metric: output.score(sums[name]) for name, output in outputs.items()}
    facts = {name: more for name, output in outputs.items() if (more := output.facts(sums[name]))}
    return Result(metrics, facts, examples)


def fit(
    features: Stored,
    outputs: Mapping[str, Output],
    settings: Settings,
    seed: int,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Train a head for all outputs on maps N×D×h×w."""
    with seeded("multi-task head", seed):
        head = Head(features.width, settings.hidden, channels(outputs), cells(settings.labels))

    def loss(answer: Tensor, pictures: Tensor) -> Tensor:
        given = by_output(answer, outputs)
        weights = settings.weights.model_dump()
        return sum(weights[name] * output.loss(given[name], pictures) for name, output in outputs.items())

    return train(head, features, loss, settings, ("multi-task order", seed), device, CLIP)


class Head(nn.Module):
    """B×D×h×w → B×C×H×W, any h and w.

    Args:
        hidden: width between.
        outputs: C.
        grid: H and W, of the label grid.
    """

    def __init__(self, width: int, hidden: int, outputs: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.narrow = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, hidden, 1))
        mix = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.predict = nn.Sequential(mix, nn.BatchNorm2d(hidden), nn.GELU(), nn.Conv2d(hidden, outputs, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return self.predict(enlarged(self.narrow(maps), self.grid))


def channels(outputs: Mapping[str, Output]) -> int:
    """C."""
    return sum(output.channels for output in outputs.values())


def by_output(answer: Tensor, outputs: Mapping[str, Output]) -> dict[str, Tensor]:
    """The head's answer ...×C×H×W → each output's channels of it."""
    return dict(zip(outputs, answer.split([output.channels for output in outputs.values()], dim=-3)))


def mosaic(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size, H×W×3 each, in rows of two or three; white where there are too few."""
    columns = math.ceil(math.sqrt(len(tiles)))
    blank = np.full_like(tiles[0], 255)
    rows = [[*tiles[start : start + columns]] for start in range(0, len(tiles), columns)]
    rows[-1] += [blank] * (columns - len(rows[-1]))
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])
