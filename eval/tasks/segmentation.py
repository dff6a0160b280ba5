"""Frozen feature maps and masks → the mIoU of a linear probe: batch norm, then a 1×1 convolution.

Shapes: N pictures, D width, h w grid, L×L label grid, C classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.datasets.split import IGNORE, Split
from eval.feature_cache import Stored
from eval.paint import paint_classes, picture
from eval.probes import ProbeSettings, answers, label_grid, linear_head, train
from eval.resampling import metric
from eval.tasks.task import Context, Example, Need, Result, chosen
from teachers.errors import UserError
from teachers.features import Encoder
from teachers.seeding import seeded

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


class Settings(ProbeSettings):
    """Linear-probe segmentation."""

    task: Literal["segmentation"]


def partners(ctx: Context) -> list[Encoder]:
    return []


def parts(ctx: Context) -> list[Need]:
    return [(ctx.model.encoder, "train", "backbone.spatial"), (ctx.model.encoder, "val", "backbone.spatial")]


def run(ctx: Context) -> Result:
    train_split, val = ctx.split("train"), ctx.split("val")
    train_split.truth("mask"), val.truth("mask")
    classes = len(train_split.mask_names)
    labels = label_grid(train_split, "mask", ctx.settings.labels)
    frequent = torch.bincount(labels[labels != IGNORE], minlength=classes)
    if not frequent.sum():
        raise UserError(f"every pixel of {train_split} is ignored", expected="masks with classes in them")
    probe = fit(ctx.features("train", "backbone.spatial"), labels, classes, ctx.settings, ctx.seed, ctx.device)
    confusion, examples = predict(probe, ctx.features("val", "backbone.spatial"), val, classes)
    truth = confusion.sum(axis=(0, 2))
    if not truth.sum():
        raise UserError(f"every pixel of {val} is ignored", expected="masks with classes in them")
    occurs = truth > 0

    def miou(sums: np.ndarray) -> np.ndarray:
        return 100.0 * np.nanmean(ious(sums)[..., occurs], axis=-1)

    constant = np.zeros((classes, classes))
    constant[:, int(frequent.argmax())] = truth
    score = metric(confusion, miou, val.identity, direction="higher", unit="%", chance=float(miou(constant)))
    facts = {"IoU": dict(zip(val.mask_names, _rounded(ious(confusion.sum(axis=0)))))}
    return Result({"mIoU": score}, facts, examples)


def fit(
    features: Stored, labels: Tensor, classes: int, settings: Settings, seed: int, device: torch.device | str = "cpu"
) -> nn.Module:
    """Train the probe on maps N×D×h×w and labels N×L×L."""
    with seeded("segmentation probe", seed):
        probe = linear_head(features.width, classes)

    def loss(logits: Tensor, chosen: Tensor) -> Tensor:
        target = labels[chosen].to(logits.device, torch.long)
        logits = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
        total = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
        return total / (target != IGNORE).sum().clamp(min=1)

    return train(probe, features, loss, settings, ("segmentation order", seed), device)


def predict(probe: nn.Module, features: Stored, split: Split, classes: int) -> tuple[np.ndarray, list[Example]]:
    """Confusion of each picture at its mask's own size, N×C×C, rows the truth; and some answers as pictures."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    mask, confusion, examples = split.truth("mask"), [], []
    for index, logits in enumerate(answers(probe, features)):
        truth = mask(index).to(logits.device)
        large = F.interpolate(logits[None], truth.shape, mode="bilinear", align_corners=False).argmax(dim=1)
        counted = multiclass_confusion_matrix(large, truth[None], classes, ignore_index=IGNORE)
        confusion.append(counted.cpu().numpy())
        if index in chosen(split.count):
            examples.append(Example(picture(split, index), paint_classes(truth), paint_classes(large[0])))
    return np.stack(confusion).astype(np.float64), examples


def ious(confusion: np.ndarray) -> np.ndarray:
    """Confusions ...×C×C → intersection over union of each class, ...×C; NaN where a class is in neither."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore"):
        return right / (confusion.sum(axis=-1) + confusion.sum(axis=-2) - right)


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(100 * float(value), 1) for value in values]
