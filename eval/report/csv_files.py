"""Turns scores into `scores.csv`, every figure with its circumstances, and into `delta.csv`, which gives Δm% again."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from eval.delta_m import Table
from eval.scores import Score
from eval.tables import reason

COLUMNS = (
    "model", "replicate", "group", "task", "kind", "protocol", "metric", "direction", "value", "unit", "chance", "n",
    "in_delta", "seed", "data", "size", "identity", "commit", "date", "seconds", "note",
)  # fmt: skip


def scores_csv(scores: Sequence[Score]) -> str:
    """Every figure, one a line; what failed or does not apply has a line too."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for score in scores:
        row = score.model_dump(include=set(COLUMNS)) | {
            "seed": score.seed if score.seeded else "",
            "size": "x".join(map(str, score.facts["size"])) if "size" in score.facts else "",
            "note": "; ".join(filter(None, (_rehearsed(score), "" if score.metrics else reason(score)))),
        }
        for name, figure in score.metrics.items() or [("", None)]:
            extra = {} if figure is None else figure.model_dump(exclude={"resamples", "error", "counts"})
            counts = {} if figure is None else {"in_delta": "yes" if figure.counts else "no"}
            writer.writerow(row | {"metric": name} | extra | counts)
    return buffer.getvalue()


def _rehearsed(score: Score) -> str:
    return "rehearsal on rendered stand-ins" if "rehearsal" in score.settings else ""


def delta_csv(table: Table) -> str:
    """The table as `python -m eval delta` reads it, so that anybody can recompute Δm%."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["model", "group", "metric", "direction", "value", "seed"])
    for (model, metric), cell in table.values.items():
        for seed, value in cell.items():
            writer.writerow([model, *metric, table.directions[metric], repr(value), "" if seed is None else seed])
    return buffer.getvalue()
