"""Turns rows of Δm% into printed cells: overall, by group and by metric, each with what its interval says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.delta_m import Row
from eval.estimate import Estimate

UNRESOLVED, SIGN_ONLY = "not resolved", "sign only"


@dataclass(frozen=True)
class Delta:
    """One Δ% as the report prints it."""

    text: str  # +0.39 ± 0.12, or n/a
    verdict: str = ""  # not resolved, sign only

    @property
    def tone(self) -> str:
        """ "good" or "bad" where the sign is known."""
        if self.verdict == UNRESOLVED or self.text[0] not in "+−":
            return ""
        return "good" if self.text[0] == "+" else "bad"


@dataclass(frozen=True)
class DeltaLine:
    """One model of the Δm% table."""

    model: str
    is_baseline: bool
    overall: Delta
    groups: dict[str, Delta]
    rank: str
    coverage: str  # 14 of 16


@dataclass(frozen=True)
class MetricLine:
    """One metric of the table of differences; the models but for the baseline."""

    group: str
    name: str
    counts: bool
    cells: dict[str, Delta]


def brief(estimate: Estimate) -> str:
    """`+0.39 ± 0.12`, `+12.3 ± 4.0`, `+456 ± 70`: as many decimals as a reader can use."""
    size = max(abs(estimate.mean), estimate.error or 0.0)
    decimals = 2 if size < 10 else 1 if size < 100 else 0
    text = f"{estimate.mean:+.{decimals}f}".replace("-", "−")
    return text if estimate.error is None else f"{text} ± {estimate.error:.{decimals}f}"


def certainty(estimate: Estimate) -> str:
    """ "not resolved" where the 95 % interval holds 0, "sign only" where it is wider than the difference itself."""
    interval = estimate.interval
    if interval is None:
        return ""
    if not estimate.resolved:
        return UNRESOLVED
    return SIGN_ONLY if interval[1] - interval[0] > abs(estimate.mean) else ""


def printed(estimate: Estimate | None, is_baseline: bool = False) -> Delta:
    """One cell; the baseline's is 0."""
    if estimate is None:
        return Delta("n/a")
    return Delta("0") if is_baseline else Delta(brief(estimate), certainty(estimate))


def delta_lines(rows: Sequence[Row], ranks: Mapping[str, float | None], baseline: str) -> list[DeltaLine]:
    """The Δm% table, a line a model."""
    return [
        DeltaLine(
            row.model, row.model == baseline, printed(row.overall, row.model == baseline),
            {group: printed(found, row.model == baseline) for group, found in row.groups.items()},
            "n/a" if ranks[row.model] is None else f"{ranks[row.model]:.2f}", row.coverage.partition(";")[0],
        )
        for row in rows
    ]  # fmt: skip


def metric_lines(rows: Sequence[Row], shown: Sequence[Row], baseline: str) -> list[MetricLine]:
    """Δ% by metric: those that enter Δm% (`rows`), then those that are only shown."""
    return [line for own, counts in ((rows, True), (shown, False)) for line in _by_metric(own, counts, baseline)]


def _by_metric(rows: Sequence[Row], counts: bool, baseline: str) -> list[MetricLine]:
    others = [row for row in rows if row.model != baseline]
    return [
        MetricLine(*metric, counts, {row.model: printed(row.metrics[metric]) for row in others})
        for metric in (rows[0].metrics if rows else ())
        if any(row.metrics[metric] for row in others)
    ]
