"""Class maps → cross-entropy, and the mIoU of semantic segmentation and of parts.

Shapes: N pictures, B of a step, C channels of an output, L×L label grid, H×W a test picture.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.confusion import confusion, frequent_class, miou, named_ious
from eval.datasets.split import IGNORE, Split
from eval.outputs.output import DenseSettings, Output
from eval.paint import paint_classes
from eval.probes import label_grid
from eval.scores import MetricScore


class Classes(Output):
    """A class of every pixel: cross-entropy; mIoU over the classes that occur."""

    names: ClassVar[str]  # which of a split's lists of names

    def __init__(self, train: Split, val: Split, settings: DenseSettings):
        super().__init__(train, val, settings)
        self.channels = len(getattr(train, self.names))
        self.labels = label_grid(train, self.kind, settings.labels)
        self.frequent = frequent_class(self.labels, self.channels, train)

    def loss(self, answer: Tensor, chosen: Tensor) -> Tensor:
        target = self.labels[chosen].to(answer.device, torch.long)
        total = F.cross_entropy(answer, target, ignore_index=IGNORE, reduction="sum")
        return total / (target != IGNORE).sum().clamp(min=1)

    def judge(self, index: int, answer: Tensor) -> np.ndarray:
        truth, large = self._compared(index, answer)
        return confusion(large.argmax(dim=0), truth, self.channels)

    def score(self, contributions: np.ndarray) -> MetricScore:
        return miou(contributions, self.frequent, self.val)

    def facts(self, contributions: np.ndarray) -> dict[str, Any]:
        return {"IoU": named_ious(contributions, getattr(self.val, self.names))}

    def paint(self, index: int, answer: Tensor) -> tuple[np.ndarray, np.ndarray]:
        truth, large = self._compared(index, answer)
        return paint_classes(truth), paint_classes(large.argmax(dim=0))


class Semseg(Classes):
    """Semantic segmentation."""

    kind, metric, names = "mask", "semseg mIoU", "mask_names"


class Parts(Classes):
    """Parts of things; class 0 is the background and counts like any other."""

    kind, metric, names = "parts", "parts mIoU", "part_names"
