"""Numbers of every pixel, known of some → L1, and the errors of surface normals and of depth.

Shapes: N pictures, B of a step, C channels of an output, L×L label grid, H×W a test picture.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.datasets.split import Split
from eval.geometry_metrics import depth_errors, normal_errors
from eval.outputs.output import DenseSettings, Output
from eval.paint import paint_depth, paint_normals
from eval.probes import value_grid
from eval.resampling import metric, pictures, ratio
from eval.scores import MetricScore

ASKED = 100_000  # training pixels whose constant answer is looked for, at most


class Values(Output):
    """Numbers of every pixel, known of some: L1; the error is compared with that of the best constant."""

    unit: ClassVar[str]

    def __init__(self, train: Split, val: Split, settings: DenseSettings):
        super().__init__(train, val, settings)
        self.labels = value_grid(train, self.kind, settings.labels)
        known = self.labels.isfinite().all(dim=1)
        if not known.any():
            raise self._missing(train, "known pixel")
        pixels = self.labels.movedim(1, -1)[known]
        self.constant = self.best(pixels[:: len(pixels) // ASKED + 1])[:, None, None]  # C×1×1

    @abstractmethod
    def normed(self, values: Tensor) -> Tensor:
        """Values ...×C×H×W as they should be."""

    @abstractmethod
    def best(self, pixels: Tensor) -> Tensor:
        """Of the values of training pixels n×C, the constant answer C with the least error."""

    @abstractmethod
    def errors(self, answer: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """(summed error, known pixels) of one picture; answer C×H×W, truth as the split has it."""

    @abstractmethod
    def figure(self, sums: np.ndarray) -> np.ndarray:
        """(summed error, known pixels) → the figure."""

    def loss(self, answer: Tensor, chosen: Tensor) -> Tensor:
        """Absolute differences, summed over channels, of an average known pixel."""
        target = self.labels[chosen].to(answer.device)
        known = target.isfinite().all(dim=1, keepdim=True)
        off = (self.normed(answer) - torch.where(known, target, 0.0)).abs() * known
        return off.sum() / known.sum().clamp(min=1)

    def judge(self, index: int, answer: Tensor) -> np.ndarray:
        truth, large = self._compared(index, answer)
        constant = self.constant.to(large).expand_as(large)
        return torch.stack([*self.errors(large, truth), self.errors(constant, truth)[0]]).double().cpu().numpy()

    def score(self, contributions: np.ndarray) -> MetricScore:
        _, known, constant = contributions.sum(axis=0)
        if not known:
            raise self._missing(self.val, "known pixel")
        return metric(
            contributions, self.figure, pictures(self.val),
            direction="lower", unit=self.unit, chance=float(self.figure(np.array([constant, known]))),
        )  # fmt: skip


class Normals(Values):
    """Surface normals; mean angular error over all known pixels, degrees."""

    kind, metric, unit, channels = "normals", "normals mErr", "°", 3

    def normed(self, values: Tensor) -> Tensor:
        return F.normalize(values, dim=-3)

    def best(self, pixels: Tensor) -> Tensor:
        return median_direction(pixels)

    def errors(self, answer: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        found = normal_errors(answer, truth)
        return found.degrees, found.known

    def figure(self, sums: np.ndarray) -> np.ndarray:
        return ratio(sums)

    def paint(self, index: int, answer: Tensor) -> tuple[np.ndarray, np.ndarray]:
        truth, large = self._compared(index, answer)
        return paint_normals(truth), paint_normals(self.normed(large))


class Depth(Values):
    """Depth; root mean squared error over all known pixels, metres."""

    kind, metric, unit = "depth", "depth RMSE", " m"

    def normed(self, values: Tensor) -> Tensor:
        return values

    def best(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=0)

    def errors(self, answer: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        found = depth_errors(answer[0], truth)
        return found.squared, found.known

    def figure(self, sums: np.ndarray) -> np.ndarray:
        return np.sqrt(ratio(sums))

    def paint(self, index: int, answer: Tensor) -> tuple[np.ndarray, np.ndarray]:
        truth, large = self._compared(index, answer)
        known = truth[truth.isfinite()]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        return paint_depth(truth, low, high), paint_depth(large[0], low, high)


def median_direction(normals: Tensor, rounds: int = 50) -> Tensor:
    """The unit vector 3 that is least far, on average, from unit vectors n×3, by Weiszfeld's iterations.

    The mean direction is no such: where most pixels face one way and the rest another, it lies between, off from all.
    """
    direction = F.normalize(normals.mean(dim=0), dim=0)
    for _ in range(rounds):
        nearness = 1 / torch.linalg.vector_norm(normals - direction, dim=1).clamp(min=1e-3)
        direction = F.normalize(nearness @ normals, dim=0)
    return direction
