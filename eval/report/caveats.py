"""Turns scores and rows of Δm% into warnings: what these figures cannot tell, and which models know nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.delta_m import Estimate, Row, Table
from eval.report.differences import SIGN_ONLY, UNRESOLVED, certainty
from eval.report.lines import Line
from eval.scores import Score

FEW = 100  # test pictures, below which an interval is itself a rough guess


@dataclass(frozen=True)
class Caveat:
    """A warning, and the figures that it is about."""

    text: str
    items: tuple[str, ...] = ()


def caveats(scores: Sequence[Score], rows: Sequence[Row], lines: Sequence[Line], baseline: str) -> list[Caveat]:
    """Every warning that applies, the weightiest first."""
    found = [_trained_once(scores), *_too_small(rows, lines, baseline), _few(lines), _chance(lines)]
    return [caveat for caveat in found if caveat is not None]


def _trained_once(scores: Sequence[Score]) -> Caveat | None:
    models = dict.fromkeys(score.model for score in scores)
    repeated = {score.model for score in scores if score.replicate}
    once = [model for model in models if model not in repeated]
    if not once:
        return None
    who = "Every model here was" if not repeated else f"{', '.join(once)}: each was"
    return Caveat(
        f"{who} trained once. The same recipe trained from another seed also scores differently, and ± does not cover "
        "that: a difference of this size between two recipes can be chance. Give several runs one name "
        "(a=runs/a-seed0 a=runs/a-seed1), and the interval is over training seeds."
    )


def _too_small(rows: Sequence[Row], lines: Sequence[Line], baseline: str) -> list[Caveat | None]:
    """What the test sets are too small for: differences from the baseline that are not resolved, or only in sign."""
    sizes = {line.metric: line.n for line in lines}
    others = [row for row in rows if row.model != baseline]
    known = [found for row in others for found in row.metrics.values() if found is not None]

    def about(chosen: Callable[[Estimate], bool], saying: str, text: str) -> Caveat | None:
        items, count = [], 0
        for metric in rows[0].metrics if rows else []:
            models = [row.model for row in others if (found := row.metrics[metric]) is not None and chosen(found)]
            count += len(models)
            if models:
                items.append(f"{metric}, n = {sizes[metric]}: {saying.format(', '.join(models))}")
        return Caveat(text.format(f"{count} of {len(known)}"), tuple(items)) if items else None

    return [
        about(
            lambda found: certainty(found) == UNRESOLVED, f"cannot tell {{}} from {baseline}",
            f"{{}} differences from {baseline}, metric by metric, cannot be told from 0 by test sets of this size.",
        ),
        about(
            lambda found: certainty(found) == SIGN_ONLY, "{}",
            f"Of {{}} differences from {baseline} only the sign is known: the 95 % interval is wider than the "
            "difference itself.",
        ),
        about(
            lambda found: found.error is None, "{}",
            f"{{}} differences from {baseline} have no interval: one value a cell cannot say whether it is chance.",
        ),
    ]  # fmt: skip


def _few(lines: Sequence[Line]) -> Caveat | None:
    small = [f"{line.metric}: n = {line.n}" for line in lines if 0 < line.n < FEW]
    return (
        Caveat(f"Fewer than {FEW} test pictures: here even the interval is a rough guess.", tuple(small))
        if small
        else None
    )


def _chance(lines: Sequence[Line]) -> Caveat | None:
    items = []
    for line in lines:
        at = [f"{model} ({cell.level})" for model, cell in line.cells.items() if cell.level]
        items += [f"{line.metric}, chance {line.chance}: {', '.join(at)}"] if at else []
    return Caveat("No better than knowing nothing of the picture:", tuple(items)) if items else None


def uncertainty(table: Table, scores: Sequence[Score], rows: Sequence[Row]) -> str:
    """What ± covers."""
    seeds = sorted({seed for row in rows for seed in row.seeds})
    left = sorted({seed for row in rows for seed in row.unpaired})
    repeated = any(score.replicate for score in scores)
    covers = []
    if table.resamples:
        covers.append("the choice of test pictures (200 bootstrap resamples, the same for every model)")
    if seeds:
        covers.append(f"{len(seeds)} {'training runs' if repeated else 'probe seeds'}")
    if not covers:
        return "No standard errors: one value a cell."
    text = (
        f"± is one standard error over {' and '.join(covers)}; “not resolved”: the 95 % interval contains 0; "
        "“sign only”: it does not, but is wider than the difference itself."
    )
    return text + (f" Left out, because not every cell has them: {', '.join(left)}." if left else "")
