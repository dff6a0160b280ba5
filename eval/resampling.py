"""Turns what each test picture contributes into a metric and its values on bootstrap resamples of the pictures.

Every model is judged on the same resamples of a split, so differences between models keep their pairing: that is what
lets a report say whether a test set of this size can tell two models apart. What is drawn is what is independent: the
pictures; the scenes or objects where a data set has several pictures of each; and of pairs, the pictures at their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from eval.datasets.split import Split
from eval.scores import MetricScore
from teachers.seeding import numpy_rng

RESAMPLES = 200
DAMPED = 0.5  # of the weights of pairs, so that none is negative


@dataclass(frozen=True, eq=False)
class Draws:
    """The weight of each of N test items in each of R resamples; deviations from 1 may be damped alike."""

    weights: np.ndarray  # R×N
    damped: float = 1.0


@lru_cache(maxsize=4)
def counts(identity: str, pictures: int) -> np.ndarray:
    """How often each picture is drawn in each resample, R×N; a function of the split alone."""
    rng = numpy_rng("resamples", identity, pictures)
    return rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=RESAMPLES)


def together(identity: str, groups: Sequence[int] | None, items: int) -> Draws:
    """N items, of which those of one group (an object, a scene) are drawn together; None: each by itself."""
    if groups is None:
        return Draws(counts(identity, items))
    found, number = np.unique(groups, return_inverse=True)
    return Draws(counts(identity, len(found))[:, number])


def pictures(split: Split) -> Draws:
    """All of a split, those of one scene together."""
    return together(split.identity, split.scenes, split.count)


def ends(identity: str, pairs: Sequence[tuple[int, int]]) -> Draws:
    """N pairs of pictures, of which many may share one: the pictures are drawn.

    A pair counts as its two pictures do together, 1 + c·(w + w′ − 2). Two pairs that share a picture then vary together
    as they do in other test sets, and a pair by itself would vary twice as much as it does (Aronow, Samii and
    Assenova 2015: what pairs share is to be counted once, their own noise not twice). The design alone cannot tell the
    two kinds of chance apart, so c makes the error right where no pair shares a picture (c² = ½), right where the
    pictures are all that matters and each is in many pairs (c → 1), and a little too large between.
    """
    _, number = np.unique(np.array(pairs), return_inverse=True)
    number = number.reshape(-1, 2)
    degrees = np.bincount(number.ravel()).astype(np.float64)
    scale = np.sqrt((degrees**2).sum() / (degrees**2 + degrees).sum())
    drawn = counts(identity, len(degrees))[:, number].sum(axis=-1)
    return Draws(1 + DAMPED * scale * (drawn - 2.0), DAMPED)


def metric(
    contributions: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    drawn: str | Draws,
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
        drawn: how resamples are drawn; the identity of a split: its pictures, each by itself.
        n: what the report calls the size of the test (default: pictures).
    """
    contributions = np.asarray(contributions, dtype=np.float64)
    draws = together(drawn, None, len(contributions)) if isinstance(drawn, str) else drawn
    flat = contributions.reshape(len(contributions), -1)
    sums = (draws.weights @ flat).reshape(len(draws.weights), *contributions.shape[1:])
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(contributions.sum(axis=0)))
        resampled = value + (np.asarray(statistic(sums)) - value) / draws.damped
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
