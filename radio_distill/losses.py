"""Predictions and targets → losses, each a plain function with its source.

Shapes: B images, C a teacher's width, h w its grid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from teachers.features import Size


def feature_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of B×C×h×w maps in PHI-S space, where the best constant scores 1 (PHI-S, arXiv 2410.01680)."""
    return F.mse_loss(predicted.float(), target.float())


def summary_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """1 − cos of B×C summaries, mean over the batch (AM-RADIO, arXiv 2312.06709, §3)."""
    return (1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1)).mean()


def resize_map(features: Tensor, grid: Size) -> Tensor:
    """B×C×h×w at another grid: bilinear, antialiased when shrinking."""
    if features.shape[-2:] == grid:
        return features
    shrinks = grid[0] < features.shape[-2] or grid[1] < features.shape[-1]
    return F.interpolate(features, size=grid, mode="bilinear", align_corners=False, antialias=shrinks)


def meet(predicted: Tensor, target: Tensor, policy: str) -> tuple[Tensor, Tensor]:
    """Both maps on one grid: the student's, the teacher's, or the finer one (AM-RADIO's choice)."""
    student, teacher = tuple(predicted.shape[-2:]), tuple(target.shape[-2:])
    grid = {"student": student, "teacher": teacher, "max": max(student, teacher, key=lambda g: g[0] * g[1])}[policy]
    return resize_map(predicted, grid), resize_map(target, grid)


class ErrorShare:
    """Accumulates Σ‖x − t‖² against Σ‖t − mean t‖²: the error relative to the best constant, which scores 1.0.

    PHI-S is one rotation and one scale, so the share is the same in teacher space and in PHI-S space.
    """

    def __init__(self) -> None:
        self.error = self.square = self.count = 0.0
        self.total: Tensor | float = 0.0

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add B×C×h×w maps on the same grid."""
        target = target.double()
        self.error += (predicted.double() - target).square().sum().item()
        self.square += target.square().sum().item()
        self.total = self.total + target.sum(dim=(0, 2, 3)).cpu()
        self.count += target.numel() / target.shape[1]

    def value(self) -> float:
        """The share of the targets' variance that is left: 0 is perfect, 1 is the best constant."""
        variance = self.square - torch.as_tensor(self.total).square().sum().item() / self.count
        return self.error / variance
