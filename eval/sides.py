"""One metric of a model and of its baseline, by seed → their means, and what each seed does to Δ%. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

Seed = str | None  # None: this value does not depend on a seed


def mean(values: Iterable[float]) -> float:
    """The plain mean: of seeds, of metrics inside a group, of groups inside the overall figure."""
    return math.fsum(values := list(values)) / len(values)


@dataclass(frozen=True)
class Sides:
    """One metric of a model and of the baseline, by seed: `paired` seeds are the same on both sides."""

    ours: dict[Seed, float]
    theirs: dict[Seed, float]
    sign: float

    @property
    def means(self) -> tuple[float, float]:
        return mean(self.ours.values()), mean(self.theirs.values())

    @property
    def paired(self) -> bool:
        """A value without a seed stands for every seed."""
        return set(self.ours) == set(self.theirs) or None in self.ours or None in self.theirs

    @property
    def slopes(self) -> tuple[float, float]:
        """How Δ% changes with the model's value and with the baseline's, to first order."""
        value, base = self.means
        return 100.0 * self.sign / base, -100.0 * self.sign * value / base**2

    def deviations(self) -> dict[tuple[Seed, ...], np.ndarray]:
        """Seeds → what each of them does to Δ%, to first order; seeds of both sides act together."""
        found: dict[tuple[Seed, ...], np.ndarray] = {}
        for side, slope in zip((self.ours, self.theirs), self.slopes):
            if None not in side:
                seeds = tuple(sorted(side))
                values = np.array([side[seed] for seed in seeds])
                found[seeds] = found.get(seeds, 0.0) + slope * (values - values.mean())
        return found

    def over(self, seeds: set[Seed]) -> Sides:
        """The same over these seeds only."""
        ours, theirs = ({s: side[s] for s in side if s is None or s in seeds} for side in (self.ours, self.theirs))
        return Sides(ours, theirs, self.sign)


@dataclass(frozen=True)
class Noise:
    """What the choice of test pictures does to one Δ%: deviations over resamples, and a variance known otherwise."""

    shifts: np.ndarray
    variance: float = 0.0
