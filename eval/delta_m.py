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
    """Δ% of one metric; raises `Undefined`, naming `where`, for a baseline ≤ 0, a NaN or an unknown direction."""
    if direction not in SIGNS:
        raise Undefined(f"{where}: unknown direction {direction!r}", expected="higher or lower (is better)")
    if not (math.isfinite(value) and math.isfinite(baseline)):
        raise Undefined(f"{where}: {value} against a baseline of {baseline}", expected="finite numbers")
    if baseline == 0:
        raise Undefined(f"{where}: the baseline is 0, so there is no relative difference", expected="another baseline")
    if baseline < 0:  # the quotient would call better what is worse
        raise Undefined(f"{where}: the baseline is {baseline:g}, below 0", expected="figures that are positive")
    return 100.0 * SIGNS[direction] * (value - baseline) / baseline + 0.0  # no −0


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
    deltas, missing = _deltas(table, model, baseline, undefined)
    deltas = _paired(deltas)
    seeds = {seed for cell in deltas.values() for seed in cell} - {None}
    seen = {seed for metric in deltas for name in (model, baseline) for seed in table.values[name, metric]} - {None}
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
        missing=missing,
        seeds=tuple(sorted(seeds)),
        unpaired=tuple(sorted(seen - seeds)),
    )


def _deltas(
    table: Table, model: str, baseline: str, undefined: str
) -> tuple[dict[Metric, dict[Seed, float]], dict[Metric, str]]:
    """Δ% of every metric that has one, by seed (None: the metric has no seeds), and why the others have none."""
    deltas: dict[Metric, dict[Seed, float]] = {}
    missing: dict[Metric, str] = {}
    for metric in table.metrics:
        ours, theirs = table.values.get((model, metric)), table.values.get((baseline, metric))
        if not ours:
            missing[metric] = table.absent.get((model, metric), "no score")
        elif not theirs:
            missing[metric] = f"the baseline has none ({table.absent.get((baseline, metric), 'no score')})"
        else:
            where, direction = f"{model} against {baseline}, {metric}", table.directions[metric]
            try:
                seeds = _shared_seeds(ours, theirs, where)
                deltas[metric] = {s: relative(_at(ours, s), _at(theirs, s), direction, where) for s in seeds}
            except Undefined as error:
                if undefined == "raise":
                    raise
                missing[metric] = error.what
    return deltas, missing


def _at(cell: Mapping[Seed, float], seed: Seed) -> float:
    return cell[None] if None in cell else cell[seed]


def _shared_seeds(ours: Mapping[Seed, float], theirs: Mapping[Seed, float], where: str) -> list[Seed]:
    """The seeds that both cells of a metric have; a value without a seed stands for every seed."""
    if None in ours or None in theirs:
        return sorted({*ours, *theirs} - {None}) or [None]
    if not set(ours) & set(theirs):
        raise Undefined(
            f"{where}: the two have no seed in common ({', '.join(sorted({*ours, *theirs}))} in all)",
            expected="the same seeds in both rows, or no seed where there is one value only",
        )
    return sorted(set(ours) & set(theirs))


def _paired(deltas: Mapping[Metric, dict[Seed, float]]) -> dict[Metric, dict[Seed, float]]:
    """Every seeded metric over the same seeds, so that what seeds do to all metrics at once is seen.

    Where fewer than two seeds are common, that would throw away more than it gains: each metric keeps its own.
    """
    seeded = [set(cell) for cell in deltas.values() if None not in cell]
    common = set.intersection(*seeded) if seeded else set()
    if len(common) < 2:
        return dict(deltas)
    return {
        metric: cell if None in cell else {seed: cell[seed] for seed in cell if seed in common}
        for metric, cell in deltas.items()
    }


def _resampled(table: Table, model: str, baseline: str, metric: Metric) -> np.ndarray | None:
    """Deviations of Δ% over the resamples, to first order (a resampled baseline of 0 does no harm)."""
    ours, theirs = table.resamples.get((model, metric)), table.resamples.get((baseline, metric))
    if ours is None or theirs is None or len(ours) != len(theirs):
        return None
    value, base = table.mean(model, metric), table.mean(baseline, metric)
    slope = (ours - ours.mean()) / base - value * (theirs - theirs.mean()) / base**2
    return 100.0 * SIGNS[table.directions[metric]] * slope


def _pool(
    deltas: Mapping[Metric, dict[Seed, float]], noise: Mapping[Metric, np.ndarray | None], groups: list[list[Metric]]
) -> Estimate:
    """The mean over groups of the mean over metrics; its error is over seeds and over resamples of the test images."""
    together: dict[tuple[Seed, ...], np.ndarray] = {}  # seeds → what the metrics over them contribute, a value a seed
    shifts = np.zeros(max((len(noise[m]) for group in groups for m in group if noise[m] is not None), default=0))
    for group in groups:
        for metric in group:
            weight, cell = 1 / (len(groups) * len(group)), deltas[metric]
            seeds = tuple(cell)
            together[seeds] = together.get(seeds, 0.0) + weight * np.array(list(cell.values()))
            if noise[metric] is not None:
                shifts = shifts + weight * noise[metric]
    return _estimate(list(together.values()), shifts)


def over_seeds_and_pictures(by_seed: Sequence[float], resamples: Sequence[float]) -> Estimate:
    """One figure from S training seeds and R resamples of the test pictures (none: R = 0), which are both chance.

    The variance of the seeds' mean and that over the resamples are added; Welch and Satterthwaite's degrees of freedom.
    """
    return _estimate([np.asarray(by_seed, dtype=float)], np.asarray(resamples, dtype=float))


def _estimate(parts: Sequence[np.ndarray], resamples: np.ndarray) -> Estimate:
    """The sum of parts whose seeds have nothing to do with each other: each is the mean of its values, one a seed."""
    total = math.fsum(part.mean() for part in parts)
    repeated = [part for part in parts if len(part) > 1]  # one value says nothing of its error
    if not repeated and not len(resamples):
        return Estimate(total)
    over_seeds = [float(np.var(part, ddof=1)) / len(part) for part in repeated]
    variance = math.fsum(over_seeds) + (float(np.var(resamples, ddof=1)) if len(resamples) else 0.0)
    spent = math.fsum(own**2 / (len(part) - 1) for own, part in zip(over_seeds, repeated))
    return Estimate(total, math.sqrt(variance), variance**2 / spent if spent else math.inf)


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
