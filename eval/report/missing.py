"""Turns scores and rows of Δm% into words about what is missing: the coverage of the first line, and every reason."""

from __future__ import annotations

from collections.abc import Sequence

from eval.delta_m import Row
from eval.scores import Score


def coverage(rows: Sequence[Row], scores: Sequence[Score]) -> str:
    """`all 4 models have all 9 metrics`, or who lacks what; and which tasks none of them could be asked."""
    total = len(rows[0].metrics)
    partial = [row for row in rows if row.missing]
    tasks = dict.fromkeys(score.task for score in scores if score.counts)
    silent = [task for task in tasks if all(score.not_applicable for score in scores if score.task == task)]
    tail = f" (applicable to none: {', '.join(silent)})" if silent else ""
    if not partial:
        return f"all {len(rows)} models have all {total} metrics{tail}"
    alike: dict[str, list[str]] = {}
    for row in partial:
        alike.setdefault(row.coverage, []).append(row.model)
    complete = len(rows) - len(partial)
    head = f"{complete} of {len(rows)} models have all {total} metrics{tail}; " if complete else ""
    every = [f"all {len(rows)} models" if len(found) == len(rows) else ", ".join(found) for found in alike.values()]
    return head + "; ".join(f"{who}: {text}" for who, text in zip(every, alike)) + ("" if complete else tail)


def absences(scores: Sequence[Score], rows: Sequence[Row]) -> list[str]:
    """What is missing, and why: one line a reason and task."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for score in scores:
        why = f"failed: {score.error}" if score.error else f"n/a: {score.not_applicable}"
        if score.error or score.not_applicable:
            reasons.setdefault((score.task, why), []).append(score.model)
    everybody = {score.model for score in scores}
    notes = []
    for (task, why), found in reasons.items():
        who = "every model" if set(found) == everybody else ", ".join(dict.fromkeys(found))
        notes.append(f"{task}, {who}: {why}")
    seen = {model: {s.group for s in scores if s.model == model and not s.metrics} for model in everybody}
    for row in rows:
        for metric, why in row.missing.items():
            if metric.group not in seen[row.model]:
                notes.append(f"{row.model}, {metric}: {why}")
    return notes
