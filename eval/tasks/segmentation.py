"""Frozen feature maps and masks → the mIoU of a linear probe: batch norm, then a 1×1 convolution.

Shapes: N pictures, D width, h w grid, L×L label grid, C classes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from eval.datasets.split import IGNORE, Split
from eval.feature_cache import Stored
from eval.resampling import metric
from eval.tasks.task import Context, Need, Result, TaskSettings
from teachers.errors import UserError
from teachers.features import Encoder
from teachers.seeding import numpy_rng, seeded

VERSION = 1
GROUP = "Dense"
COUNTS = True
SEEDED = True
FIT = "stretch"
SPLITS = ("train", "val")
PROTOCOL = (
    "Backbone feature maps, frozen; the probe is BatchNorm(D) and a 1×1 convolution to the classes. Training: AdamW, "
    "cosine learning rate, cross-entropy between the logits, enlarged bilinearly, and the mask at the label grid's "
    "size (nearest pixel); pictures whole, not augmented. Test: logits enlarged bilinearly to the mask's own size. "
    "Metric: mIoU over the classes that occur in the test masks; ignored pixels count for nothing. A seed decides the "
    "probe's initialisation and the order of pictures. Chance: always the training pixels' most frequent class."
)


class Settings(TaskSettings):
    """Linear-probe segmentation."""

    task: Literal["segmentation"]
    seeds: Annotated[list[int], Field(min_length=1)] = Field([0, 1, 2], description="of the probe; one score each")
    steps: Annotated[int, Field(ge=1)] = Field(400, description="of training")
    batch: Annotated[int, Field(ge=1)] = Field(32, description="pictures a step")
    lr: Annotated[float, Field(gt=0)] = Field(1e-2, description="peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-3, description="of the probe")
    labels: Annotated[int, Field(ge=1)] = Field(32, description="side of the label grid in training")


def partners(ctx: Context) -> list[Encoder]:
    return []


def parts(ctx: Context) -> list[Need]:
    return [(ctx.model.encoder, "train", "backbone.spatial"), (ctx.model.encoder, "val", "backbone.spatial")]


def run(ctx: Context) -> Result:
    train, val = ctx.split("train"), ctx.split("val")
    train.truth("mask"), val.truth("mask")
    classes = len(train.mask_names)
    labels = label_grid(train, ctx.settings.labels)
    frequent = torch.bincount(labels[labels != IGNORE], minlength=classes)
    if not frequent.sum():
        raise UserError(f"every pixel of {train} is ignored", expected="masks with classes in them")
    probe = fit(ctx.features("train", "backbone.spatial"), labels, classes, ctx.settings, ctx.seed, ctx.device)
    confusion = predict(probe, ctx.features("val", "backbone.spatial"), val, classes)
    truth = confusion.sum(axis=(0, 2))
    if not truth.sum():
        raise UserError(f"every pixel of {val} is ignored", expected="masks with classes in them")
    occurs = truth > 0

    def miou(sums: np.ndarray) -> np.ndarray:
        return 100.0 * np.nanmean(ious(sums)[..., occurs], axis=-1)

    constant = np.zeros((classes, classes))
    constant[:, int(frequent.argmax())] = truth
    score = metric(confusion, miou, val.identity, direction="higher", unit="%", chance=float(miou(constant)))
    return Result({"mIoU": score}, {"IoU": dict(zip(val.mask_names, _rounded(ious(confusion.sum(axis=0)))))})


def label_grid(split: Split, side: int) -> Tensor:
    """Masks of a split, sampled at the centres of a side×side grid: N×side×side uint8."""
    mask = split.truth("mask")
    size = (side, side)
    grids = [F.interpolate(mask(index)[None, None].float(), size, mode="nearest-exact") for index in range(split.count)]
    return torch.cat(grids)[:, 0].to(torch.uint8)


def fit(
    features: Stored, labels: Tensor, classes: int, settings: Settings, seed: int, device: torch.device | str = "cpu"
) -> nn.Module:
    """Train the probe on maps N×D×h×w and labels N×L×L."""
    width = features[torch.tensor([0])].shape[1]
    with seeded("segmentation probe", seed):
        probe = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, classes, 1)).to(device)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    rng, epochs = numpy_rng("segmentation order", seed), -(-settings.steps * settings.batch // len(labels))
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(epochs)])
    for step in range(settings.steps):
        chosen = torch.from_numpy(order[step * settings.batch : (step + 1) * settings.batch])
        logits = probe(features[chosen].to(device))
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
        target = labels[chosen].to(device, torch.long)
        loss = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
        optimizer.zero_grad()
        (loss / (target != IGNORE).sum().clamp(min=1)).backward()
        optimizer.step()
        schedule.step()
    return probe.eval()


@torch.no_grad()
def predict(probe: nn.Module, features: Stored, split: Split, classes: int) -> np.ndarray:
    """Confusion of each picture at its mask's own size: N×C×C, rows the truth."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    mask, device = split.truth("mask"), next(probe.parameters()).device
    confusion = []
    for maps in features.chunks():
        for logits in probe(maps.to(device)):
            truth = mask(len(confusion)).to(device)
            large = F.interpolate(logits[None], truth.shape, mode="bilinear", align_corners=False).argmax(dim=1)
            counted = multiclass_confusion_matrix(large, truth[None], classes, ignore_index=IGNORE)
            confusion.append(counted.cpu().numpy())
    return np.stack(confusion).astype(np.float64)


def ious(confusion: np.ndarray) -> np.ndarray:
    """Confusions ...×C×C → intersection over union of each class, ...×C; NaN where a class is in neither."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore"):
        return right / (confusion.sum(axis=-1) + confusion.sum(axis=-2) - right)


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(100 * float(value), 1) for value in values]
