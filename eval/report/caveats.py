"""Turns scores and rows of Δm% into warnings: what these figures cannot tell, and which models know nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.delta_m import Row, Table
from eval.estimate import Estimate
from eval.report.differences import SIGN_ONLY, UNRESOLVED, certainty
from eval.report.lines import Line
from eval.scores import Score
from eval.tasks.zero_shot import ALIKE, NUMBERS
from teachers.errors import UserError

FEW = 100  # test pictures, below which an interval is itself a rough guess
SHOWN = 8  # names of classes that a warning lists, at most
MANY = 20  # tested differences, from which on one of them is expected to look real by chance


@dataclass(frozen=True)
class Caveat:
    """A warning, and the figures that it is about."""

    head: str
    text: str
    items: tuple[str, ...] = ()


def caveats(
    scores: Sequence[Score], rows: Sequence[Row], lines: Sequence[Line], baseline: str, refused: UserError | None = None
) -> list[Caveat]:
    """Every warning that applies, the weightiest first.

    Args:
        refused: why `baseline` is not the one that was asked for.
    """
    found = [
        _another_baseline(baseline, refused), *_names(scores), _trained_once(scores), _idle_baseline(lines, baseline),
        *_too_small(rows, lines, baseline), _many(rows, baseline), _few(lines), _chance(lines),
    ]  # fmt: skip
    return [caveat for caveat in found if caveat is not None]


def _another_baseline(baseline: str, refused: UserError | None) -> Caveat | None:
    if refused is None:
        return None
    items = (f"expected: {refused.expected}",) if refused.expected else ()
    return Caveat("Not the baseline that was asked for.", f"All is against {baseline}, because {refused.what}.", items)


def _names(scores: Sequence[Score]) -> list[Caveat]:
    """Classes that no text can be right for: of one name, or called by numbers."""
    found = []
    for fact, head, text in (
        (ALIKE, "Classes of one name.", "No text tells them apart: pictures of all but the first count as wrong."),
        (NUMBERS, "Classes called by numbers.", "Zero-shot asks for the number itself; `names:` gives them words."),
    ):  # fmt: skip
        of_task = {score.task: score.facts[fact] for score in scores if score.facts.get(fact)}
        items = tuple(f"{task}: {_listed(names)}" for task, names in of_task.items())
        found += [Caveat(head, text, items)] if items else []
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _trained_once(scores: Sequence[Score]) -> Caveat | None:
    models = dict.fromkeys(score.model for score in scores)
    repeated = {score.model for score in scores if score.replicate}
    once = [model for model in models if model not in repeated]
    if not once:
        return None
    return Caveat(
        "One training run a model." if not repeated else f"One training run of {', '.join(once)}.",
        "The same recipe trained from another seed scores differently too, and ± does not cover that: what separates "
        "two recipes here can be chance. Give several runs one name (a=runs/a-seed0 a=runs/a-seed1), and the interval "
        "is over training seeds.",
    )


def _idle_baseline(lines: Sequence[Line], baseline: str) -> Caveat | None:
    """A Δ% against next to nothing is large whatever the difference is."""
    at = [str(line.metric) for line in lines if baseline in line.cells and line.cells[baseline].level]
    if not at:
        return None
    text = (
        f"{baseline} knows nothing on {len(at)} of {len(lines)} metrics, and percentages of next to nothing are large "
        "whatever the difference: they weigh most in Δm% and mean least. A baseline that has learnt says more."
    )
    return Caveat("The baseline is at chance.", text, tuple(at))


def _too_small(rows: Sequence[Row], lines: Sequence[Line], baseline: str) -> list[Caveat]:
    """Differences from the baseline, metric by metric, that are not resolved, known in sign only, or untested."""
    others = [row for row in rows if row.model != baseline]
    known = [found for row in others for found in row.metrics.values() if found is not None]
    sizes = {line.metric: line.n for line in lines}

    def which(chosen: Callable[[Estimate], bool]) -> list[str]:
        found = []
        for metric in rows[0].metrics if rows else ():
            models = [row.model for row in others if row.metrics[metric] is not None and chosen(row.metrics[metric])]
            who = f"any of {len(others)} models" if len(models) == len(others) > 2 else ", ".join(models)
            found += [f"{metric}, n = {sizes[metric]}: cannot tell {who} from {baseline}"] if models else []
        return found

    def caveat(head: str, chosen: Callable[[Estimate], bool], text: str, named: bool) -> list[Caveat]:
        count = sum(map(chosen, known))
        items = tuple(which(chosen)) if named else ()
        return [Caveat(head, f"{count} of {len(known)} differences from {baseline} {text}", items)] if count else []

    return [
        *caveat("Too small to tell.", lambda found: certainty(found) == UNRESOLVED,
                "cannot be told from 0 with this number of test pictures and seeds.", True),
        *caveat("The sign, and little more.", lambda found: certainty(found) == SIGN_ONLY,
                "are not 0, but their 95 % interval is wider than the difference itself.", False),
        *caveat("No interval.", lambda found: found.error is None,
                "come from one value a cell: nothing says whether they are chance.", True),
    ]  # fmt: skip


def _many(rows: Sequence[Row], baseline: str) -> Caveat | None:
    """How many of the differences would look real if none was: 95 % intervals miss one in twenty."""
    known = [found for row in rows if row.model != baseline for found in row.metrics.values()]
    tested = [found for found in known if found is not None and found.error is not None]
    if len(tested) < MANY:
        return None
    real = sum(found.resolved for found in tested)
    text = (
        f"{real} of {len(tested)} differences from {baseline} are not 0 by their 95 % intervals; if every model were "
        f"as good as {baseline}, about {round(0.05 * len(tested))} would still look so. Trust a pattern over one cell."
    )
    return Caveat("Many comparisons.", text)


def _few(lines: Sequence[Line]) -> Caveat | None:
    """Metrics by the size of their test, where that is so small that resampling it says little of other pictures."""
    sizes: dict[int, list[str]] = {}
    for line in lines:
        if 0 < line.n < FEW:
            sizes.setdefault(line.n, []).append(str(line.metric))
    every = sum(1 for line in lines if line.n)
    items = [f"n = {n}: {'all metrics' if len(own) == every else ', '.join(own)}" for n, own in sorted(sizes.items())]
    text = "Even an interval is a rough guess where so few are resampled."
    return Caveat(f"Fewer than {FEW} test pictures.", text, tuple(items)) if items else None


def _chance(lines: Sequence[Line]) -> Caveat | None:
    """Who, by metric, is not better than knowing nothing of the picture."""
    items = []
    for line in lines:
        at = [f"{model} ({cell.level})" for model, cell in line.cells.items() if cell.level]
        items += [f"{line.metric}, chance {line.chance}: {', '.join(at)}"] if at else []
    text = "Knowing nothing of the picture scores as well, as far as this test can tell."
    return Caveat("No better than chance.", text, tuple(items)) if items else None


def uncertainty(table: Table, scores: Sequence[Score], rows: Sequence[Row]) -> str:
    """What ± covers."""
    counts = sorted({len(row.seeds) for row in rows if len(row.seeds) > 1})
    left = sorted({seed for row in rows for seed in row.left_out})
    apart = [row.model for row in rows if not row.paired]
    covers = []
    if table.resamples:
        covers.append("the choice of test pictures (200 bootstrap resamples, the same for every model)")
    if counts:
        many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        covers.append(f"{many} {'training runs' if any(score.replicate for score in scores) else 'probe seeds'}")
    if not covers:
        return "No standard errors: one value a cell."
    text = (
        f"± is one standard error over {' and '.join(covers)}; “not resolved”: the 95 % interval contains 0; "
        "“sign only”: it does not, but is wider than the difference itself."
    )
    if apart:
        text += f" Not paired, because its seeds are not the baseline's or not known: {', '.join(apart)}."
    return text + (f" Left out, because not every cell has them: {', '.join(left)}." if left else "")
