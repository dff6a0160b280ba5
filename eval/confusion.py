"""Predicted and true class maps → the confusion of each picture, and from their sums the mean intersection over union.

Shapes: N pictures, C classes; `...` stands for any leading axes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from eval.datasets.split import IGNORE, Split
from eval.resampling import metric, pictures
from eval.scores import MetricScore
from teachers.errors import UserError

HINT = "masks with classes in them"


def frequent_class(labels: Tensor, classes: int, split: Split) -> int:
    """The class that most pixels of `labels` have; raises `UserError` where all of them are ignored."""
    counted = torch.bincount(labels[labels != IGNORE].flatten(), minlength=classes)
    if not counted.sum():
        raise UserError(f"every pixel of {split} is ignored", expected=HINT)
    return int(counted.argmax())


def confusion(answer: Tensor, truth: Tensor, classes: int) -> np.ndarray:
    """One picture's pixels by true class (rows) and answer (columns), C×C; `IGNORE` counts for nothing."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    counted = multiclass_confusion_matrix(answer[None], truth[None], classes, ignore_index=IGNORE)
    return counted.cpu().numpy().astype(np.float64)


def ious(confusions: np.ndarray) -> np.ndarray:
    """Confusions ...×C×C → intersection over union of each class, ...×C; NaN where a class is in neither."""
    right = np.diagonal(confusions, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore"):
        return right / (confusions.sum(axis=-1) + confusions.sum(axis=-2) - right)


def miou(confusions: np.ndarray, frequent: int, split: Split) -> MetricScore:
    """Confusions N×C×C → mIoU in % over the classes that occur in the truth; chance is to answer `frequent` always.

    A resample is a test set of its own: a class that it has lost counts for nothing there, as in a set without it.
    """
    truth = confusions.sum(axis=(0, 2))
    if not truth.sum():
        raise UserError(f"every pixel of {split} is ignored", expected=HINT)

    def mean(sums: np.ndarray) -> np.ndarray:
        occurs = sums.sum(axis=-1) > 0
        found = np.where(occurs, ious(sums), 0.0).sum(axis=-1)
        return 100.0 * found / occurs.sum(axis=-1)  # NaN for a resample in which nothing counts

    constant = np.zeros_like(confusions[0])
    constant[:, frequent] = truth
    return metric(confusions, mean, pictures(split), direction="higher", unit="%", chance=float(mean(constant)))


def named_ious(confusions: np.ndarray, names: tuple[str, ...]) -> dict[str, float | None]:
    """Class name → its IoU in % over all pictures; None where it is in neither truth nor answers."""
    found = ious(confusions.sum(axis=0))
    return {name: None if np.isnan(iou) else round(100 * float(iou), 1) for name, iou in zip(names, found)}
