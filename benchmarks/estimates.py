"""Scores of several seeds → a mean with its 95 % interval, over seeds and over test pictures.

The arithmetic is that of Δm% (`eval.estimate.over_seeds_and_pictures`): seeds and test pictures are both chance, and
with three seeds the interval is as wide as three seeds deserve. Pictures come in by the resamples that every score
carries, the same for all models, so that differences keep their pairing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from eval.estimate import over_seeds_and_pictures
from eval.scores import MetricScore


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval; that of one seed covers the pictures alone."""

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @property
    def differs(self) -> bool:
        """Whether 0 is outside: of a difference, whether it is resolved."""
        return self.low > 0 or self.high < 0

    @property
    def reach(self) -> float:
        """Half of the interval."""
        return (self.high - self.low) / 2

    def as_dict(self) -> dict:
        return asdict(self)


def estimate(scores: Sequence[MetricScore]) -> Estimate:
    """Of one thing, a score a seed."""
    return interval([s.value for s in scores], [s.resamples for s in scores])


def difference(ours: Sequence[MetricScore], base: Sequence[MetricScore]) -> Estimate:
    """ours − base, seed by seed and resample by resample: both trained with these seeds, judged on these pictures."""
    values = [a.value - b.value for a, b in zip(ours, base, strict=True)]
    resamples = [np.subtract(a.resamples, b.resamples) for a, b in zip(ours, base)]
    return interval(values, resamples)


def interval(values: Sequence[float], resamples: Sequence[Sequence[float]]) -> Estimate:
    """`values` S, one a seed; `resamples` S×R of the test pictures (rows may be empty: then only seeds count)."""
    pictures = np.mean(resamples, axis=0) if all(map(len, resamples)) else ()
    found = over_seeds_and_pictures(values, pictures)
    low, high = found.interval or (found.mean, found.mean)
    return Estimate(found.mean, low, high, tuple(float(value) for value in values))
