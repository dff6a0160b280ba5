"""Frozen feature maps and surface normals → how far off a probe's normals are, in degrees (Probe3D).

Shapes: N pictures, B of a step, D width, h w grid, L×L label grid; normals are unit vectors in the camera's frame.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.datasets.split import Split
from eval.dpt import HEADS, DptSettings, build_head
from eval.feature_cache import Stored
from eval.geometry_metrics import (
    Figure,
    NormalErrors,
    angles,
    normal_errors,
    over_pictures,
    picture_means,
    rmse,
    share,
    stack,
)
from eval.paint import paint_normals, picture
from eval.probes import answers, train, value_grid
from eval.tasks.task import Context, Example, Result, alone, chosen, maps_of
from teachers.errors import UserError
from teachers.seeding import seeded

VERSION = 1
GROUP = "Probe3D"
COUNTS = True
SEEDED = True
FIT = "stretch"
SPLITS = ("train", "val")
PROTOCOL = (
    f"Backbone feature maps, frozen, and a head trained on them: a direction and its concentration κ a cell. {HEADS}"
    "Training: AdamW, linear warm-up and cosine learning rate; the uncertainty-aware angular loss of Bae et al. "
    "(2021), log(1 + exp(−πκ)) − log(1 + κ²) + κ · angle with κ = elu(x) + 1.01; answers enlarged bilinearly to the "
    "label grid (nearest pixel of the truth); pictures whole, not augmented. Test: answers enlarged bilinearly to the "
    "truth's own size, their length ignored. Unknown pixels count for nothing. Metrics: share of pixels that are off "
    "by less than an angle, RMSE and mean of the angles; each picture's own figure, averaged over pictures (as "
    "Probe3D does; others pool all pixels). A seed decides the head's initialisation and the order of pictures. "
    "Chance: always the direction of the training pixels' mean normal."
)
FIGURES = {
    "normals <11.25°": Figure(partial(share, bound=0), "%", "higher"),
    "normals <22.5°": Figure(partial(share, bound=1), "%", "higher", counts=False),
    "normals <30°": Figure(partial(share, bound=2), "%", "higher", counts=False),
    "normals RMSE": Figure(rmse, "°", "lower"),
    "normals mean": Figure(lambda sums: picture_means(sums.degrees, sums.known), "°", "lower", counts=False),
}


class Settings(DptSettings):
    """Surface normals."""

    task: Literal["normals"]


partners = alone
parts = maps_of(*SPLITS)


def run(ctx: Context) -> Result:
    train_split, val, settings = ctx.split("train"), ctx.split("val"), ctx.settings
    train_split.truth("normals"), val.truth("normals")
    normals = value_grid(train_split, "normals", settings.labels)
    known = normals.isfinite().all(dim=1)
    if not known.any():
        raise _nothing_known(train_split)
    mean = F.normalize(normals.movedim(1, -1)[known].mean(dim=0), dim=0)
    head = fit(ctx.features("train", "backbone.spatial"), normals, settings, ctx.seed, ctx.device)
    errors, constant, examples = predict(head, ctx.features("val", "backbone.spatial"), val, mean, settings)
    if not errors.known.any():
        raise _nothing_known(val)
    facts = {"mean training normal": [round(float(value), 3) for value in mean]}
    return Result(over_pictures(FIGURES, errors, constant, val), facts, examples)


def fit(
    features: Stored, normals: Tensor, settings: Settings, seed: int, device: torch.device | str = "cpu"
) -> nn.Module:
    """Train a head on maps N×D×h×w and normals N×3×L×L, NaN where unknown; it answers B×4×h'×w', normal and κ."""
    with seeded("normals probe", seed):
        head = build_head(features.width, 4, settings)

    def loss(predicted: Tensor, numbers: Tensor) -> Tensor:
        truth = normals[numbers].to(predicted.device)
        predicted = F.interpolate(predicted, truth.shape[2:], mode="bilinear", align_corners=False)
        return angular_loss(predicted, truth)

    return train(head, features, loss, settings, ("normals order", seed), device)


def angular_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """Mean negative log likelihood of `truth` B×3×L×L (NaN where unknown) under directions and κ, B×4×L×L.

    Bae et al. 2021, eq. 9: an angular von Mises-Fisher distribution, so that pixels of which the head is not sure
    (edges) pull less. 0 for a batch of which nothing is known.
    """
    known = truth.isfinite().all(dim=1)
    if not known.any():
        return predicted.sum() * 0
    predicted, truth = predicted.movedim(1, -1)[known], truth.movedim(1, -1)[known]
    kappa = F.elu(predicted[:, 3]) + 1.01
    spread = torch.log1p(torch.exp(-torch.pi * kappa)) - torch.log1p(kappa.square())
    return (spread + kappa * angles(predicted[:, :3], truth, dim=1)).mean()


def predict(
    head: nn.Module, features: Stored, split: Split, mean: Tensor, settings: Settings
) -> tuple[NormalErrors, NormalErrors, list[Example]]:
    """Errors of each picture at its truth's own size, those of always answering `mean`, and some answers shown."""
    normals, errors, constant, examples = split.truth("normals"), [], [], []
    for index, answer in enumerate(answers(head, features, settings.batch)):
        truth = normals(index).to(answer.device)
        large = F.interpolate(answer[None, :3], truth.shape[1:], mode="bilinear", align_corners=False)[0]
        errors.append(normal_errors(large, truth))
        constant.append(normal_errors(mean.to(truth)[:, None, None].expand_as(truth), truth))
        if index in chosen(split.count):
            painted = paint_normals(F.normalize(large, dim=0))
            examples.append(Example(picture(split, index), paint_normals(truth), painted))
    return stack(errors), stack(constant), examples


def _nothing_known(split: Split) -> UserError:
    return UserError(f"no pixel of {split} has a known normal", expected="unit vectors, NaN where unknown")
