"""Frozen feature maps and masks → the mIoU of a linear probe: batch norm, then a 1×1 convolution.

Shapes: N pictures, D width, h w grid, L×L label grid, C classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.confusion import confusion, frequent_class, miou, named_ious
from eval.datasets.split import IGNORE, Split
from eval.feature_cache import Stored
from eval.paint import paint_classes, picture
from eval.probes import ProbeSettings, answers, label_grid, linear_head, train
from eval.tasks.task import Context, Example, Result, alone, chosen, maps_of
from teachers.seeding import seeded

VERSION = 2  # resamples leave out classes that they have lost
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


partners = alone
parts = maps_of(*SPLITS)


def run(ctx: Context) -> Result:
    train_split, val = ctx.split("train"), ctx.split("val")
    train_split.truth("mask"), val.truth("mask")
    classes = len(train_split.mask_names)
    labels = label_grid(train_split, "mask", ctx.settings.labels)
    frequent = frequent_class(labels, classes, train_split)
    probe = fit(ctx.features("train", "backbone.spatial"), labels, classes, ctx.settings, ctx.seed, ctx.device)
    confusions, examples = predict(probe, ctx.features("val", "backbone.spatial"), val, classes)
    learnt, occurs = set(labels.unique().tolist()), confusions.sum(axis=(0, 2)).nonzero()[0]
    unseen = [val.mask_names[label] for label in occurs if label not in learnt]  # they can only be missed
    facts = {"IoU": named_ious(confusions, val.mask_names), "unseen": unseen}
    return Result({"mIoU": miou(confusions, frequent, val)}, facts, examples)


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
    mask, confusions, examples = split.truth("mask"), [], []
    for index, logits in enumerate(answers(probe, features)):
        truth = mask(index).to(logits.device)
        large = F.interpolate(logits[None], truth.shape, mode="bilinear", align_corners=False)[0].argmax(dim=0)
        confusions.append(confusion(large, truth, classes))
        if index in chosen(split.count):
            examples.append(Example(picture(split, index), paint_classes(truth), paint_classes(large)))
    return np.stack(confusions), examples
