"""Predicted and true depth or surface normals → errors: the sums of each picture, from which every figure follows.

A figure is a mean over pictures (each picture's own figure first: Probe3D) or over pixels (all pictures' pixels pooled:
the multi-task literature). `over_pictures` makes the first from pictures' sums; the sums themselves make the second.

Shapes: `...` stands for any leading axes (none, or pictures); H×W is the truth's size. Unknown truth is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.datasets.split import Split
from eval.resampling import metric, percentage, pictures, ratio
from eval.scores import MetricScore
from teachers.errors import UserError

RATIOS = (1.25, 1.25**2, 1.25**3)  # δ: how far off a depth may be, as a factor
ANGLES = (11.25, 22.5, 30.0)  # degrees that a normal may be off


class DepthErrors(NamedTuple):
    """Sums over the pixels of a picture whose depth counts."""

    known: Tensor  # ...: how many count
    within: Tensor  # ...×3: how many are right within each of `RATIOS`
    squared: Tensor  # ...: squared errors, metres²


class NormalErrors(NamedTuple):
    """Sums over the pixels of a picture whose normal is known."""

    known: Tensor  # ...: how many
    within: Tensor  # ...×3: how many are off by less than each of `ANGLES`
    degrees: Tensor  # ...: errors, degrees
    squared: Tensor  # ...: squared errors, degrees²


def depth_errors(predicted: Tensor, truth: Tensor, near: float = 1e-3, far: float = float("inf")) -> DepthErrors:
    """Errors of depth ...×H×W in metres; only true depths in [near, far] count.

    δ is max(predicted / true, true / predicted) (Eigen et al. 2014); a prediction that is not positive is never right.
    """
    assert predicted.shape == truth.shape, f"{tuple(predicted.shape)} against {tuple(truth.shape)}"
    known = in_range(truth, near, far)
    _check_finite(predicted, known)
    ratio = torch.maximum(predicted / truth, truth / predicted.clamp(min=1e-9))
    within = [_sum(ratio < bound, known) for bound in RATIOS]
    return DepthErrors(known.sum((-2, -1)), torch.stack(within, -1), _sum((predicted - truth).square(), known))


def normal_errors(predicted: Tensor, truth: Tensor) -> NormalErrors:
    """Errors of normals ...×3×H×W, of any length."""
    degrees = angular_errors(predicted, truth)
    known = degrees.isfinite()
    within = torch.stack([_sum(degrees < bound, known) for bound in ANGLES], -1)
    return NormalErrors(known.sum((-2, -1)), within, _sum(degrees, known), _sum(degrees.square(), known))


def angular_errors(predicted: Tensor, truth: Tensor) -> Tensor:
    """Angles between normals ...×3×H×W, of any length, in degrees ...×H×W; NaN where the truth is unknown."""
    assert predicted.shape == truth.shape, f"{tuple(predicted.shape)} against {tuple(truth.shape)}"
    _check_finite(predicted, truth.isfinite().all(dim=-3, keepdim=True).expand_as(truth))
    return angles(predicted, truth, dim=-3).rad2deg()


def angles(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Angles between vectors along `dim`, in radians; 90° where one of them has no length.

    Kahan's 2·atan2(|u − v|, |u + v|) of unit vectors: exact at 0 and 180°, where the arc cosine loses half its digits
    and has an infinite gradient.
    """
    first, second = F.normalize(first, dim=dim), F.normalize(second, dim=dim)
    lengths = (torch.linalg.vector_norm(vectors, dim=dim) for vectors in (first - second, first + second))
    return 2 * torch.atan2(*lengths)


def in_range(depth: Tensor, near: float, far: float) -> Tensor:
    """Which depths are known and lie in [near, far]."""
    return (depth >= near) & (depth <= far)


Errors = TypeVar("Errors", DepthErrors, NormalErrors)


def stack(errors: Sequence[Errors]) -> Errors:
    """The sums of N pictures, one by one, as one."""
    return type(errors[0])(*(torch.stack(values) for values in zip(*errors)))


class Figure(NamedTuple):
    """A figure that each picture has of its own."""

    of: Callable[[Errors], np.ndarray]  # sums of N pictures → N×2: the picture's figure and 1, or (0, 0) without truth
    unit: str
    direction: str
    counts: bool = True  # in Δm%


def over_pictures(
    figures: Mapping[str, Figure], errors: Errors, constant: Errors, split: Split
) -> dict[str, MetricScore]:
    """Each picture's own figures, averaged over the pictures that have any known truth.

    Args:
        constant: the errors of an answer that knows nothing of the picture: chance.
        split: of the pictures; those of one scene are drawn together in resamples.
    """
    judged, drawn, scores = int((errors.known > 0).sum()), pictures(split), {}
    for name, figure in figures.items():
        mean = percentage if figure.unit == "%" else ratio
        chance = float(mean(figure.of(constant).sum(axis=0)))
        scores[name] = metric(
            figure.of(errors), mean, drawn, direction=figure.direction, unit=figure.unit, n=judged, chance=chance,
            counts_in_delta=figure.counts,
        )  # fmt: skip
    return scores


def share(errors: DepthErrors | NormalErrors, bound: int) -> np.ndarray:
    """Which share of each picture's pixels is within bound number `bound`, with its 1: N×2."""
    return picture_means(errors.within[:, bound], errors.known)


def rmse(errors: DepthErrors | NormalErrors) -> np.ndarray:
    """The root of each picture's mean squared error, with its 1: N×2."""
    return np.sqrt(picture_means(errors.squared, errors.known))


def picture_means(sums: Tensor, known: Tensor) -> np.ndarray:
    """Sums N over `known` pixels N → each picture's mean and 1, N×2; (0, 0) where nothing is known."""
    sums, known = sums.cpu().double(), known.cpu()
    seen = known > 0
    means = torch.where(seen, sums / known.clamp(min=1), 0.0)
    return torch.stack([means, seen.double()], dim=1).numpy()


def _sum(values: Tensor, known: Tensor) -> Tensor:
    """Over the known pixels of each picture; what stands elsewhere (NaN, infinity) is left out, not multiplied by 0."""
    return torch.where(known, values.float(), 0.0).sum((-2, -1))


def _check_finite(predicted: Tensor, known: Tensor) -> None:
    """An answer of NaN would pass for unknown truth."""
    bad = int((known & ~predicted.isfinite()).sum())
    if bad:
        raise UserError(f"{bad} predicted values are not finite", expected="a number wherever the truth is known")
