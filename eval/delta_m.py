"""Turns a table of scores into Δm%: how much better than a baseline each model is, by metric, by group and overall.

Pure arithmetic, no torch. For a metric with value M and baseline B: d = ±100·(M − B)/B, minus where lower is better, so
that positive is always better (Maninis et al. 2019; Vandenhende et al. survey). A group is the mean of its metrics,
the overall figure the mean of the groups, each group once. Directions are data, never guessed from a name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from teachers.errors import UserError

SIGNS = {"higher": 1.0, "lower": -1.0}  # the only two directions
CONFIDENCE = 0.95
Seed = str | None  # None: this value does not depend on a seed


class Metric(NamedTuple):
    """Names a column of the table."""

    group: str
    name: str

    def __str__(self) -> str:
        return f"{self.group} / {self.name}"


class Undefined(UserError):
    """A Δ% that has no value: the baseline is 0, something is not finite, a direction is unknown."""


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


@dataclass
class Table:
    """Values of models × metrics, a value a seed where there are seeds.

    `resamples[model, metric]` holds, optionally, the metric on R bootstrap resamples of the test images, the same
    resamples for every model: what a set of that size can tell. `absent` may say why a cell has no value.
    """

    directions: dict[Metric, str] = field(default_factory=dict)
    values: dict[tuple[str, Metric], dict[Seed, float]] = field(default_factory=dict)
    resamples: dict[tuple[str, Metric], np.ndarray] = field(default_factory=dict)
    absent: dict[tuple[str, Metric], str] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)

    def add(self, model: str, metric: Metric, direction: str, value: float, seed: Seed = None) -> None:
        """Enter one value; `UserError` for a cell given twice, a direction that changed, a value that is no number."""
        where = f"{model}, {metric}"
        if direction not in SIGNS:
            raise Undefined(f"{where}: unknown direction {direction!r}", expected="higher or lower (is better)")
        if self.directions.setdefault(metric, direction) != direction:
            raise UserError(f"{where}: direction {direction!r}, but {self.directions[metric]!r} in an earlier row")
        if not math.isfinite(value):
            raise Undefined(f"{where}: the value is {value}", expected="a finite number")
        cell = self.values.setdefault((model, metric), {})
        if seed in cell or (cell and (seed is None) != (None in cell)):
            label = "" if seed is None else f", seed {seed}"
            raise UserError(f"{where}{label}: given twice", expected="one value a cell, or one a seed")
        cell[seed] = value
        if model not in self.models:
            self.models.append(model)

    @property
    def metrics(self) -> list[Metric]:
        """All metrics, the groups in the order in which they first appear."""
        groups = list(dict.fromkeys(metric.group for metric in self.directions))
        return sorted(self.directions, key=lambda metric: groups.index(metric.group))

    def mean(self, model: str, metric: Metric) -> float | None:
        """The mean over seeds, or None for a missing cell."""
        cell = self.values.get((model, metric))
        return float(np.mean(list(cell.values()))) if cell else None


@dataclass(frozen=True)
class Row:
    """One model against the baseline. None stands for n/a; `missing` says which metrics and why."""

    model: str
    metrics: dict[Metric, Estimate | None]
    groups: dict[str, Estimate | None]
    overall: Estimate | None
    missing: dict[Metric, str]
    seeds: tuple[str, ...]  # that the figures are over (none: no metric has seeds)
    unpaired: tuple[str, ...]  # seeds left out because some metric, or the baseline, does not have them

    @property
    def coverage(self) -> str:
        """ "16 of 16", or "14 of 16; missing: ..."."""
        text = f"{len(self.metrics) - len(self.missing)} of {len(self.metrics)}"
        return text + (f"; missing: {', '.join(map(str, self.missing))}" if self.missing else "")


def relative(value: float, baseline: float, direction: str, where: str = "this metric") -> float:
    """Δ% of one metric; raises `Undefined`, naming `where`, for a baseline of 0, a NaN or an unknown direction."""
    if direction not in SIGNS:
        raise Undefined(f"{where}: unknown direction {direction!r}", expected="higher or lower (is better)")
    if not (math.isfinite(value) and math.isfinite(baseline)):
        raise Undefined(f"{where}: {value} against a baseline of {baseline}", expected="finite numbers")
    if baseline == 0:
        raise Undefined(f"{where}: the baseline is 0, so there is no relative difference", expected="another baseline")
    return 100.0 * SIGNS[direction] * (value - baseline) / baseline


def mean(values: Iterable[float]) -> float:
    """The mean of metrics inside a group, and of groups inside the overall figure."""
    return math.fsum(values := list(values)) / len(values)


def compare(table: Table, baseline: str, *, common: bool = False, undefined: str = "raise") -> list[Row]:
    """Every model of the table against `baseline`, in the table's order (the baseline's own row is all zeros).

    Args:
        common: average over the metrics that a row shares with the baseline, instead of answering n/a.
        undefined: "raise" for a Δ% that does not exist, or "missing" to treat it as a missing cell, with its reason.
    """
    if baseline not in table.models:
        raise UserError(f"no model is named {baseline!r}", expected="one of " + ", ".join(table.models))
    return [_row(table, model, baseline, common, undefined) for model in table.models]


def _row(table: Table, model: str, baseline: str, common: bool, undefined: str) -> Row:
    missing: dict[Metric, str] = {}
    for metric in table.metrics:
        for name in (model, baseline):
            if (name, metric) not in table.values:
                reason = table.absent.get((name, metric), "no score")
                missing[metric] = reason if name == model else f"the baseline has none ({reason})"
                break
    present = [metric for metric in table.metrics if metric not in missing]
    seeds, unpaired = _shared_seeds(table, model, baseline, present)
    deltas: dict[Metric, list[float]] = {}  # a value a seed, the same seeds for every metric; or one, where it has none
    for metric in present:
        ours, theirs = table.values[model, metric], table.values[baseline, metric]
        own_seeds = (None,) if None in ours and None in theirs else seeds
        where, direction = f"{model} against {baseline}, {metric}", table.directions[metric]
        try:
            deltas[metric] = [relative(_at(ours, seed), _at(theirs, seed), direction, where) for seed in own_seeds]
        except Undefined as error:
            if undefined == "raise":
                raise
            missing[metric] = error.what
    noise = {metric: _resampled(table, model, baseline, metric) for metric in deltas}

    groups: dict[str, Estimate | None] = {}
    for group in dict.fromkeys(metric.group for metric in table.metrics):
        own = [metric for metric in table.metrics if metric.group == group]
        chosen = [metric for metric in own if metric in deltas]
        groups[group] = _pool(deltas, noise, [chosen]) if chosen and (common or len(chosen) == len(own)) else None
    chosen = [[m for m in deltas if m.group == group] for group in groups if groups[group] is not None]
    complete = chosen and (common or not missing)
    return Row(
        model=model,
        metrics={metric: _pool(deltas, noise, [[metric]]) if metric in deltas else None for metric in table.metrics},
        groups=groups,
        overall=_pool(deltas, noise, chosen) if complete else None,
        missing={metric: missing[metric] for metric in table.metrics if metric in missing},
        seeds=tuple(seeds),
        unpaired=tuple(unpaired),
    )


def _at(cell: Mapping[Seed, float], seed: Seed) -> float:
    return cell[None] if None in cell else cell[seed]


def _shared_seeds(table: Table, model: str, baseline: str, metrics: Sequence[Metric]) -> tuple[list[str], list[str]]:
    """The seeds that every seeded cell of both rows has, and those that only some have."""
    cells = [table.values[name, metric] for metric in metrics for name in (model, baseline)]
    seeded = [set(cell) for cell in cells if None not in cell]
    if not seeded:
        return [], []
    shared, seen = set.intersection(*seeded), set.union(*seeded)
    if not shared:
        raise UserError(
            f"{model} and {baseline} have no seed in common ({', '.join(sorted(seen))} in all)",
            expected="the same seeds for every metric of both rows, or no seed where there is one value only",
        )
    return sorted(shared), sorted(seen - shared)


def _resampled(table: Table, model: str, baseline: str, metric: Metric) -> np.ndarray | None:
    """Deviations of Δ% over the resamples, to first order (a resampled baseline of 0 does no harm)."""
    ours, theirs = table.resamples.get((model, metric)), table.resamples.get((baseline, metric))
    if ours is None or theirs is None or len(ours) != len(theirs):
        return None
    value, base = table.mean(model, metric), table.mean(baseline, metric)
    slope = (ours - ours.mean()) / base - value * (theirs - theirs.mean()) / base**2
    return 100.0 * SIGNS[table.directions[metric]] * slope


def _pool(
    deltas: Mapping[Metric, list[float]], noise: Mapping[Metric, np.ndarray | None], groups: list[list[Metric]]
) -> Estimate:
    """The mean over groups of the mean over metrics; its error is over seeds and over resamples of the test images."""
    count = max(len(deltas[metric]) for group in groups for metric in group)
    spread = [[np.broadcast_to(deltas[metric], count) for metric in group] for group in groups]
    by_seed = np.mean([np.mean(group, axis=0) for group in spread], axis=0)
    width = max((len(noise[m]) for group in groups for m in group if noise[m] is not None), default=0)
    zeros = np.zeros(width)
    shifts = [np.mean([zeros if noise[m] is None else noise[m] for m in group], axis=0) for group in groups]
    return over_seeds_and_pictures(by_seed, np.mean(shifts, axis=0))


def over_seeds_and_pictures(by_seed: Sequence[float], resamples: Sequence[float]) -> Estimate:
    """One figure from S training seeds and R resamples of the test pictures (none: R = 0), which are both chance.

    The variance of the seeds' mean and that over the resamples are added; Welch and Satterthwaite's degrees of freedom.
    """
    count = len(by_seed)
    seed_variance = float(np.var(by_seed, ddof=1)) / count if count > 1 else 0.0
    test_variance = float(np.var(resamples, ddof=1)) if len(resamples) else 0.0
    if count < 2 and not len(resamples):
        return Estimate(mean(by_seed))
    total = seed_variance + test_variance
    freedom = (count - 1) * (total / seed_variance) ** 2 if seed_variance else math.inf
    return Estimate(mean(by_seed), math.sqrt(total), freedom)


def average_rank(table: Table, tolerance: float = 0.0) -> dict[str, float | None]:
    """Mean rank of each model, over metrics inside a group, then over groups; 1 is best; None where a cell is missing.

    Ties take the smaller rank; values closer than `tolerance` (for rounded inputs) are ties.
    """
    ranks: dict[str, dict[str, list[float]]] = {model: {} for model in table.models}
    incomplete = set()
    for metric in table.metrics:
        sign = SIGNS[table.directions[metric]]
        scores = {model: table.mean(model, metric) for model in table.models}
        known = {model: sign * score for model, score in scores.items() if score is not None}
        incomplete |= set(table.models) - set(known)
        for model, score in known.items():
            better = sum(other - score > tolerance for other in known.values())
            ranks[model].setdefault(metric.group, []).append(1 + better)
    return {
        model: None if model in incomplete else mean(mean(values) for values in groups.values())
        for model, groups in ranks.items()
    }


class Finding(NamedTuple):
    """A printed Δm% beside the one that its own numbers give."""

    model: str
    printed: float
    computed: float
    follows: bool

    def __str__(self) -> str:
        verdict = "follows from its own numbers" if self.follows else "does NOT follow from its own numbers"
        return f"{self.model}: printed {self.printed:g}, computed {self.computed:.3f}: {verdict}"


def check(printed: Mapping[str, float], computed: Mapping[str, float | None], tolerance: float = 0.01) -> list[Finding]:
    """Compare published Δm% with computed ones; `tolerance` leaves room for rounded inputs and a rounded result."""
    findings = []
    for model, claim in printed.items():
        if model not in computed:
            raise UserError(f"no model is named {model!r}", expected="one of " + ", ".join(computed))
        value = computed[model]
        if value is None:
            raise UserError(f"{model}: Δm% is n/a, so {claim:g} cannot be checked", todo="fill the missing cells")
        findings.append(Finding(model, claim, value, abs(value - claim) <= tolerance))
    return findings
