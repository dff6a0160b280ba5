"""Scores of several seeds → a mean with its 95 % interval, over seeds and over test pictures.

Two things are chance: the training seed and the choice of test pictures. The seeds' means have the variance s²/S; the
pictures' part comes from the bootstrap resamples that every score carries (the same resamples for all models, so that
differences keep their pairing). They are added, and the interval is Student's t with Welch and Satterthwaite's degrees
of freedom: with three seeds it is as wide as three seeds deserve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf, sqrt

import numpy as np

from eval.scores import MetricScore

LEVEL = 0.95


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
    from scipy.stats import t

    count = len(values)
    seeds = float(np.var(values, ddof=1)) / count if count > 1 else 0.0
    pictures = float(np.var(np.mean(resamples, axis=0), ddof=1)) if all(map(len, resamples)) else 0.0
    total = seeds + pictures
    freedom = (count - 1) * (total / seeds) ** 2 if seeds else inf
    mean = float(np.mean(values))
    reach = float(t.ppf((1 + LEVEL) / 2, freedom)) * sqrt(total)
    return Estimate(mean, mean - reach, mean + reach, tuple(float(value) for value in values))
