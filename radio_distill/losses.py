"""Predictions and targets → losses, each a plain function with its source, in fp32, an image at a time.

Shapes: B images, C a teacher's width, h w its grid, D a summary's width. What compares maps gives B×h×w, a figure a
cell, and `image_means` makes B of it; what compares summaries gives B.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from teachers.features import Size

# Feature maps, B×C×h×w → B×h×w ----------------------------------------------------------------------------------------


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean over channels of the squared error; in PHI-S space the best constant scores 1 (PHI-S, arXiv 2410.01680)."""
    return (predicted.float() - target.float()).square().mean(1)


def smooth_l1_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean over channels of smooth L1: half the square below 1, linear above."""
    return F.smooth_l1_loss(predicted.float(), target.float(), reduction="none").mean(1)


def cosine_error(predicted: Tensor, target: Tensor) -> Tensor:
    """1 − cos of the vectors of each cell."""
    return 1 - F.cosine_similarity(predicted.float(), target.float(), dim=1)


def hybrid_error(predicted: Tensor, target: Tensor) -> Tensor:
    """0.9 · (1 − cos) + 0.1 · smooth L1 (AM-RADIO, arXiv 2312.06709, §3)."""
    return 0.9 * cosine_error(predicted, target) + 0.1 * smooth_l1_error(predicted, target)


FEATURE_ERRORS = {
    "mse": squared_error,
    "hybrid": hybrid_error,
    "cosine": cosine_error,
    "smooth_l1": smooth_l1_error,
}


def image_means(cells: Tensor, valid: Tensor | None = None) -> Tensor:
    """B×h×w → B: the mean over an image's cells, or over its valid ones (B×h×w bool); an image without any gives 0."""
    if valid is None:
        return cells.flatten(1).mean(1)
    count = valid.flatten(1).sum(1)
    # where(), not a product: 0 · inf would be NaN, in the gradient too
    return torch.where(valid, cells, 0.0).flatten(1).sum(1) / count.clamp(min=1)


def mesa_error(predicted: Tensor, averaged: Tensor) -> Tensor:
    """The student's features against its average's, both layer-normalised without affine (SE-MESA, C-RADIOv4).

    B×C×h×w of both on common positions → B×h×w; no gradient reaches the average.
    """
    return squared_error(_normed(predicted), _normed(averaged.detach()))


def _normed(features: Tensor) -> Tensor:
    features = features.float().movedim(1, -1)
    return F.layer_norm(features, features.shape[-1:]).movedim(-1, 1)


# Summaries, B×D → B ---------------------------------------------------------------------------------------------------


def cosine_distance(predicted: Tensor, target: Tensor) -> Tensor:
    """1 − cos (AM-RADIO, §3)."""
    return 1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1)


def angle(predicted: Tensor, target: Tensor) -> Tensor:
    """The angle in radians, 0 to π, as 2·atan2(‖a − b‖, ‖a + b‖) of unit vectors: arccos has no gradient at 0 and π."""
    a, b = F.normalize(predicted.float(), dim=-1), F.normalize(target.float(), dim=-1)
    return 2 * torch.atan2(torch.linalg.vector_norm(a - b, dim=-1), torch.linalg.vector_norm(a + b, dim=-1))


def squared_angle(predicted: Tensor, target: Tensor, dispersion: Tensor | float = 1.0) -> Tensor:
    """Θ² over the teacher's own dispersion, so that tight and spread-out teachers weigh alike (C-RADIOv4)."""
    return angle(predicted, target).square() / dispersion


def dispersion(summaries: Tensor, total: Callable[[Tensor], Tensor] = lambda mine: mine) -> Tensor:
    """E[Θ(z, μ)²] of N×D summaries about their mean direction μ = E[z] / ‖E[z]‖, in rad² (C-RADIOv4).

    `total` adds a tensor over the ranks that hold other summaries.
    """
    direction = F.normalize(total(summaries.double().sum(0)), dim=0)
    squares = angle(summaries, direction.to(summaries).expand_as(summaries)).double().square()
    summed = total(torch.stack([squares.sum(), squares.new_tensor(len(squares))]))
    return (summed[0] / summed[1]).float()


def relational_error(predicted: Tensor, target: Tensor) -> Tensor:
    """How far the pairwise geometry of a batch is off: B×D and B×D' → B, a figure an image; 0 below three images.

    Distances between the images' unit vectors over their mean, smooth L1 between student's and teacher's (relational
    distillation, Park et al. 2019, arXiv 1904.05068, RKD-D). AMoE's asymmetric form is not published in detail.
    """
    if len(predicted) < 3:  # two images have one distance, which is always its own mean
        return predicted.new_zeros(len(predicted), dtype=torch.float32)
    said, wanted = _distances(predicted), _distances(target)
    off_diagonal = ~torch.eye(len(said), dtype=torch.bool, device=said.device)
    errors = F.smooth_l1_loss(said, wanted, reduction="none")
    return torch.where(off_diagonal, errors, 0.0).sum(1) / (len(said) - 1)


def _distances(summaries: Tensor) -> Tensor:
    """B×B distances between unit vectors, over the mean of those between different ones."""
    unit = F.normalize(summaries.float(), dim=-1)
    squared = (2 - 2 * unit @ unit.T).clamp(min=0)
    distances = (squared + 1e-12).sqrt()  # the root has no gradient at 0, where the diagonal lies
    return distances / (distances.sum() / (len(unit) * (len(unit) - 1))).clamp(min=1e-6)


# Grids ----------------------------------------------------------------------------------------------------------------


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

    Every normaliser here is one rotation and one scale, so the share is the same in teacher space and in theirs.
    """

    def __init__(self) -> None:
        self.error = self.square = self.count = 0.0
        self.total: Tensor | float = 0.0

    def update(self, predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> None:
        """Add B×C×h×w maps on the same grid; only the cells that B×h×w `valid` names, where it is given."""
        predicted, target = predicted.double().movedim(1, -1), target.double().movedim(1, -1)
        if valid is not None:
            predicted, target = predicted[valid], target[valid]
        predicted, target = predicted.flatten(0, -2), target.flatten(0, -2)
        self.error += (predicted - target).square().sum().item()
        self.square += target.square().sum().item()
        self.total = self.total + target.sum(0).cpu()
        self.count += len(target)

    def value(self) -> float:
        """The share of the targets' variance that is left: 0 is perfect, 1 is the best constant."""
        variance = self.square - torch.as_tensor(self.total).square().sum().item() / self.count
        return self.error / variance
