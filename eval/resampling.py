"""Turns what each test picture contributes into a metric and its values on bootstrap resamples of the pictures.

Every model is judged on the same resamples of a split, so differences between models keep their pairing: that is what
lets a report say whether a test set of this size can tell two models apart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from eval.scores import MetricScore
from teachers.seeding import numpy_rng

RESAMPLES = 200


@lru_cache(maxsize=4)
def counts(identity: str, pictures: int) -> np.ndarray:
    """How often each picture is drawn in each resample, R×N; a function of the split alone."""
    rng = numpy_rng("resamples", identity, pictures)
    return rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=RESAMPLES)


def metric(
    contributions: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    identity: str,
    *,
    direction: str,
    unit: str,
    n: int | None = None,
    chance: float | None = None,
    counts_in_delta: bool = True,
) -> MetricScore:
    """A metric that is a function of sums over pictures.

    Args:
        contributions: N×..., of each picture.
        statistic: sums ...×(one picture's shape), with or without a leading axis of resamples → values.
        identity: of the split.
        n: what the report calls the size of the test (default: pictures).
    """
    contributions = np.asarray(contributions, dtype=np.float64)
    draws = counts(identity, len(contributions))
    sums = (draws @ contributions.reshape(len(contributions), -1)).reshape(len(draws), *contributions.shape[1:])
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = np.asarray(statistic(sums))
        value = float(statistic(contributions.sum(axis=0)))
    resamples = [round(float(x), 5) for x in resampled] if np.isfinite(resampled).all() else []
    return MetricScore(
        value=value, direction=direction, unit=unit, n=len(contributions) if n is None else n, chance=chance,
        counts=counts_in_delta, resamples=resamples,
    )  # fmt: skip


def percentage(sums: np.ndarray) -> np.ndarray:
    """(hits, tries) → 100 · hits / tries."""
    return 100.0 * sums[..., 0] / sums[..., 1]


def ratio(sums: np.ndarray) -> np.ndarray:
    """(part, whole) → part / whole."""
    return sums[..., 0] / sums[..., 1]


def hits(right: np.ndarray) -> np.ndarray:
    """Whether each picture was right, N → its contributions (hit, try), N×2."""
    return np.stack([np.asarray(right, dtype=np.float64), np.ones(len(right))], axis=1)
