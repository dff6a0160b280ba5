"""Masks of what is to be found → weighted binary cross-entropy, and the F of saliency and of boundaries.

Shapes: N pictures, B of a step, C channels of an output, L×L label grid, H×W a test picture, T thresholds.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.boundaries import boundary_counts, even_thresholds
from eval.datasets.split import IGNORE, Split
from eval.outputs.output import DenseSettings, Output, enlarged
from eval.paint import paint_share
from eval.probes import Cells, cells, label_grid
from eval.resampling import metric, pictures
from eval.saliency import BETA_SQUARED, THRESHOLDS, f_measures, saliency_counts
from eval.scores import MetricScore
from teachers.seeding import torch_rng

RANDOM_PICTURES = 32  # that random boundaries are scored on: their F is about the same for any


class Found(Output):
    """Whether a pixel is something: weighted binary cross-entropy; the largest F over thresholds."""

    beta_squared: ClassVar[float] = 1.0  # of F
    labels: Tensor  # N×rows×columns: 0, 1, IGNORE
    levels: np.ndarray  # thresholds

    @abstractmethod
    def counts(self, truth: Tensor, scores: Tensor) -> np.ndarray:
        """(rightly found, found, true) at each threshold, T×3, of scores in [0, 1]."""

    @abstractmethod
    def positive_weight(self, positive: Tensor, counted: Tensor) -> Tensor | float:
        """How much of the loss, of 1, a pixel that is something weighs; one that is not weighs the rest."""

    @abstractmethod
    def chance(self, contributions: np.ndarray) -> float:
        """What knowing nothing of the pictures scores."""

    def loss(self, answer: Tensor, chosen: Tensor) -> Tensor:
        target = self.labels[chosen].to(answer.device)
        logits = enlarged(answer, target.shape[1:])[:, 0]
        positive, counted = target == 1, target != IGNORE
        weight = self.positive_weight(positive, counted)
        weight = torch.where(positive, weight, 1 - weight) * counted
        total = F.binary_cross_entropy_with_logits(logits, positive.to(logits), weight=weight, reduction="sum")
        return total / counted.sum().clamp(min=1)

    def judge(self, index: int, answer: Tensor) -> np.ndarray:
        truth, large = self._compared(index, answer)
        return self.counts(truth, large[0].sigmoid())

    def score(self, contributions: np.ndarray) -> MetricScore:
        if not contributions[:, 0, 2].sum():
            raise self._missing(self.val, "pixel of value 1")
        return metric(
            contributions, lambda sums: f_measures(sums, self.beta_squared).max(axis=-1), pictures(self.val),
            direction="higher", unit="%", chance=self.chance(contributions),
        )  # fmt: skip

    def facts(self, contributions: np.ndarray) -> dict[str, Any]:
        best = f_measures(contributions.sum(axis=0), self.beta_squared).argmax()
        return {"threshold": round(float(self.levels[best]), 4)}

    def paint(self, index: int, answer: Tensor) -> tuple[np.ndarray, np.ndarray]:
        truth, large = self._compared(index, answer)
        return paint_share((truth == 1).float()), paint_share(large[0].sigmoid())

    def _learn(self, train: Split, labels: Tensor) -> None:
        if not (labels == 1).any():
            raise self._missing(train, "pixel of value 1")
        self.labels = labels


class Saliency(Found):
    """What stands out; salient pixels and others weigh the same in a batch; F of β² = 0.3."""

    kind, metric, beta_squared, levels = "saliency", "saliency maxF", BETA_SQUARED, THRESHOLDS

    def __init__(self, train: Split, val: Split, settings: DenseSettings):
        super().__init__(train, val, settings)
        self._learn(train, label_grid(train, self.kind, settings.labels))

    def positive_weight(self, positive: Tensor, counted: Tensor) -> Tensor:
        return 1 - positive.sum() / counted.sum().clamp(min=1)

    def counts(self, truth: Tensor, scores: Tensor) -> np.ndarray:
        return saliency_counts(scores, truth, self.levels)

    def chance(self, contributions: np.ndarray) -> float:
        """Everything is salient."""
        salient = contributions[:, 0, 2].sum()
        pixels = sum(int((self.truth(index) != IGNORE).sum()) for index in range(self.val.count))
        return float(f_measures(np.array([salient, pixels, salient]), self.beta_squared))


class Boundary(Found):
    """Boundaries, learnt at four times the label grid: the picture's own size where the grid is a quarter of it."""

    kind, metric = "boundary", "boundary odsF"

    def __init__(self, train: Split, val: Split, settings: DenseSettings):
        super().__init__(train, val, settings)
        self._learn(train, touched_grid(train, self.kind, cells(settings.labels, 4)))
        self.levels = even_thresholds(settings.thresholds)

    def positive_weight(self, positive: Tensor, counted: Tensor) -> float:
        return self.settings.boundary_weight

    def counts(self, truth: Tensor, scores: Tensor) -> np.ndarray:
        return boundary_counts(scores.cpu().numpy(), truth.cpu().numpy(), self.levels, self.settings.tolerance)

    def chance(self, contributions: np.ndarray) -> float:
        """Scores are drawn uniformly for each pixel, of as many pictures as give a steady figure."""
        count, rng = min(RANDOM_PICTURES, self.val.count), torch_rng("random boundaries", self.val.identity)
        truths = [self.truth(number * self.val.count // count) for number in range(count)]
        return float(f_measures(sum(self.counts(t, torch.rand(t.shape, generator=rng)) for t in truths)).max())


def touched_grid(split: Split, kind: str, labels: Cells) -> Tensor:
    """Thin masks of a split, N×rows×columns uint8: 1 where any pixel of a cell is, `IGNORE` where none counts."""
    truth, size = split.truth(kind), cells(labels)
    grids = []
    for index in range(split.count):
        mask = truth(index)[None]
        ones, counted = (F.adaptive_max_pool2d(what.float(), size) for what in (mask == 1, mask != IGNORE))
        grids.append(torch.where(counted > 0, ones, IGNORE).to(torch.uint8))
    return torch.cat(grids)
