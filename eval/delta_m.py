"""Turns a table of scores into Δm%: how much better than a baseline each model is, by metric, by group and overall.

Pure arithmetic, no torch. For a metric with value M and baseline B: d = ±100·(M − B)/B, minus where lower is better, so
that positive is always better (Maninis et al. 2019; Vandenhende et al. survey). A group is the mean of its metrics,
the overall figure the mean of the groups, each group once. Directions are data, never guessed from a name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from eval.estimate import Estimate, combined
from eval.sides import Noise, Seed, Sides, mean
from teachers.errors import UserError

SIGNS = {"higher": 1.0, "lower": -1.0}  # the only two directions


class Metric(NamedTuple):
    """Names a column of the table."""

    group: str
    name: str

    def __str__(self) -> str:
        return f"{self.group} / {self.name}"


class Undefined(UserError):
    """A Δ% that has no value: the baseline is 0, something is not finite, a direction is unknown."""


@dataclass
class Table:
    """Values of models × metrics, a value a seed where there are seeds.

    `resamples[model, metric]` holds, optionally, the metric on R bootstrap resamples of the test images, the same
    resamples for every model: what a set of that size can tell; `errors` a standard error where those cannot be had.
    `absent` may say why a cell has no value.
    """

    directions: dict[Metric, str] = field(default_factory=dict)
    values: dict[tuple[str, Metric], dict[Seed, float]] = field(default_factory=dict)
    resamples: dict[tuple[str, Metric], np.ndarray] = field(default_factory=dict)
    errors: dict[tuple[str, Metric], float] = field(default_factory=dict)
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
    seeds: tuple[str, ...]  # of the model, that the figures are over (none: no metric has seeds)
    left_out: tuple[str, ...]  # seeds that some metric, or the baseline, does not have
    paired: bool  # False: of some metric, model and baseline have other seeds, and each varies by itself

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
    sides, deltas, missing = _deltas(table, model, baseline, undefined)
    noise = {metric: _resampled(table, model, baseline, metric, own) for metric, own in sides.items()}

    def pool(chosen: list[list[Metric]]) -> Estimate:
        return _pool(deltas, sides, noise, chosen)

    groups: dict[str, Estimate | None] = {}
    for group in dict.fromkeys(metric.group for metric in table.metrics):
        own = [metric for metric in table.metrics if metric.group == group]
        chosen = [metric for metric in own if metric in deltas]
        groups[group] = pool([chosen]) if chosen and (common or len(chosen) == len(own)) else None
    chosen = [[m for m in deltas if m.group == group] for group in groups if groups[group] is not None]
    seeds = {seed for own in sides.values() for seed in (own.theirs if None in own.ours else own.ours)} - {None}
    used = {seed for own in sides.values() for seed in (*own.ours, *own.theirs)}
    seen = {seed for metric in deltas for name in (model, baseline) for seed in table.values[name, metric]}
    return Row(
        model=model,
        metrics={metric: pool([[metric]]) if metric in deltas else None for metric in table.metrics},
        groups=groups,
        overall=pool(chosen) if chosen and (common or not missing) else None,
        missing=missing,
        seeds=tuple(sorted(seeds)),
        left_out=tuple(sorted(seen - used)),
        paired=all(own.paired for own in sides.values()),
    )


def _deltas(
    table: Table, model: str, baseline: str, undefined: str
) -> tuple[dict[Metric, Sides], dict[Metric, float], dict[Metric, str]]:
    """The values and the Δ% of every metric that has one, and why the others have none."""
    sides: dict[Metric, Sides] = {}
    missing: dict[Metric, str] = {}
    for metric in table.metrics:
        ours, theirs = table.values.get((model, metric)), table.values.get((baseline, metric))
        if not ours:
            missing[metric] = table.absent.get((model, metric), "no score")
        elif not theirs:
            missing[metric] = f"the baseline has none ({table.absent.get((baseline, metric), 'no score')})"
        else:
            sides[metric] = _shared(Sides(ours, theirs, SIGNS[table.directions[metric]]))
    sides = _over_the_same(sides)
    deltas: dict[Metric, float] = {}
    for metric, own in sides.items():
        try:
            where = f"{model} against {baseline}, {metric}"
            deltas[metric] = relative(*own.means, table.directions[metric], where)
        except Undefined as error:
            if undefined == "raise":
                raise
            missing[metric] = error.what
    return {metric: sides[metric] for metric in deltas}, deltas, missing


def _shared(sides: Sides) -> Sides:
    """Over the seeds that both have; where fewer than two are common, over all, each side by itself."""
    common = set(sides.ours) & set(sides.theirs)
    return sides if sides.paired or len(common) < 2 else sides.over(common)


def _over_the_same(sides: Mapping[Metric, Sides]) -> dict[Metric, Sides]:
    """Every paired metric over the same seeds, so that what seeds do to all metrics at once is seen.

    Where fewer than two seeds are common, that would throw away more than it gains: each metric keeps its own.
    """
    paired = [{*own.ours, *own.theirs} - {None} for own in sides.values() if own.paired]
    seeded = [seeds for seeds in paired if seeds]
    common = set.intersection(*seeded) if seeded else set()
    if len(common) < 2:
        return dict(sides)
    return {metric: own.over(common) if own.paired else own for metric, own in sides.items()}


def _resampled(table: Table, model: str, baseline: str, metric: Metric, sides: Sides) -> Noise | None:
    """What other test pictures would do, to first order (a resampled baseline of 0 does no harm); None: not known.

    The same resamples of both are one draw of pictures; errors that are known otherwise add as squares.
    """
    shifts: list[np.ndarray] = []
    variance = 0.0
    for name, slope in zip((model, baseline), sides.slopes):
        own, error = table.resamples.get((name, metric)), table.errors.get((name, metric))
        if own is not None:
            shifts.append(slope * (own - own.mean()))
        elif error is not None:
            variance += (slope * error) ** 2
        else:
            return None
    if len({len(own) for own in shifts}) > 1:
        return None
    return Noise(sum(shifts, np.zeros(0 if not shifts else len(shifts[0]))), 0.0 if model == baseline else variance)


def _pool(
    deltas: Mapping[Metric, float],
    sides: Mapping[Metric, Sides],
    noise: Mapping[Metric, Noise | None],
    groups: list[list[Metric]],
) -> Estimate:
    """The mean over groups of the mean over metrics; its error is over seeds and over the choice of test pictures."""
    total = mean(mean(deltas[metric] for metric in group) for group in groups)
    together: dict[tuple[Seed, ...], np.ndarray] = {}  # seeds → what they do to the metrics over them
    known = [noise[metric] for group in groups for metric in group if noise[metric] is not None]
    shifts, variance = np.zeros(max((len(own.shifts) for own in known), default=0)), 0.0
    for group in groups:
        for metric in group:
            weight, own = 1 / (len(groups) * len(group)), sides[metric].deviations()
            for seeds, values in own.items():
                together[seeds] = together.get(seeds, 0.0) + weight * values
            if noise[metric] is not None:
                shifts = shifts + weight * (noise[metric].shifts if len(noise[metric].shifts) else 0.0)
                variance += weight**2 * noise[metric].variance
            elif known and not any(len(seeds) > 1 for seeds in own):
                return Estimate(total)  # one of unknown error among others: that of the mean is not known either
    return combined(total, list(together.values()), shifts, variance if known else None)


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
