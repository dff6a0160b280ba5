"""Turns chance, over seeds and over test pictures, into a figure's standard error and 95 % interval. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error (None: nothing to compute it from) and the error's degrees of freedom."""

    mean: float
    error: float | None = None
    freedom: float = math.inf

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of Student's t."""
        if self.error is None:
            return None
        from scipy.special import stdtrit

        reach = float(stdtrit(self.freedom, (1 + CONFIDENCE) / 2)) * self.error if self.error else 0.0
        return self.mean - reach, self.mean + reach

    @property
    def resolved(self) -> bool | None:
        """Whether the interval excludes 0; None where there is no interval."""
        interval = self.interval
        return None if interval is None else not interval[0] <= 0.0 <= interval[1]

    @property
    def verdict(self) -> str:
        """ "resolved", "not resolved", or "untested" where there is no interval."""
        return {None: "untested", True: "resolved", False: "not resolved"}[self.resolved]

    def __str__(self) -> str:
        return f"{self.mean:+.2f}" + ("" if self.error is None else f" ± {self.error:.2f}")


def over_seeds_and_pictures(
    by_seed: Sequence[float], resamples: Sequence[float], error: float | None = None
) -> Estimate:
    """One figure from S training seeds and R resamples of the test pictures (none: R = 0), which are both chance.

    The variance of the seeds' mean and that over the resamples (or the square of `error`, where those cannot be had)
    are added; Welch and Satterthwaite's degrees of freedom.
    """
    values = np.asarray(by_seed, dtype=float)
    variance = None if error is None else error**2
    return combined(float(values.mean()), [values - values.mean()], np.asarray(resamples, dtype=float), variance)


def combined(total: float, parts: Sequence[np.ndarray], resamples: np.ndarray, variance: float | None) -> Estimate:
    """A figure and its error: of parts that have nothing to do with each other, each a deviation a seed; of resamples
    of the test pictures; and of a variance that is known otherwise (None: there is none)."""
    repeated = [part for part in parts if len(part) > 1]  # one value says nothing of its error
    if not repeated and not len(resamples) and variance is None:
        return Estimate(total)
    over_seeds = [float(np.var(part, ddof=1)) / len(part) for part in repeated]
    pictures = (variance or 0.0) + (float(np.var(resamples, ddof=1)) if len(resamples) else 0.0)
    both = math.fsum(over_seeds) + pictures
    spent = math.fsum(own**2 / (len(part) - 1) for own, part in zip(over_seeds, repeated))
    return Estimate(total, math.sqrt(both), both**2 / spent if spent else math.inf)
