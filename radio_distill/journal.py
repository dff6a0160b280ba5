"""What happens in a run → `journal.jsonl`, one JSON object a line: the truth that console, curves and mirrors show.

Records carry a `kind` and the number of finished steps: `step` (losses of one optimiser step), `heldout`, `skipped`
(unreadable samples by shard), `start`, `stop`. After a crash the journal is rewound to the checkpoint that training
goes on from, so every step stands in it once.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

NAME = "journal.jsonl"
TIMES = ("time", "seconds", "wait")  # what differs between two runs that are otherwise equal, bit for bit


def read(run: Path) -> list[dict[str, Any]]:
    """All records of a run; a last line that a crash tore is left out."""
    path = run / NAME
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def series(records: list[dict[str, Any]], kind: str) -> dict[str, tuple[list[int], list[float]]]:
    """Every number that records of `kind` hold, as (steps, values) by name."""
    out: dict[str, tuple[list[int], list[float]]] = {}
    for record in records:
        if record["kind"] != kind:
            continue
        for key, value in record.items():
            if key not in ("kind", "step", *TIMES) and isinstance(value, (int, float)):
                steps, values = out.setdefault(key, ([], []))
                steps.append(record["step"])
                values.append(value)
    return out


class Journal:
    """Appends records; each is on its way to the disk when `write` returns.

    `finished_steps` is those of the checkpoint that training goes on from, None where it begins.
    """

    def __init__(self, run: Path, finished_steps: int | None):
        self.path = run / NAME
        if self.path.exists():
            self._rewind(-1 if finished_steps is None else finished_steps)
        self._file = open(self.path, "a")  # noqa: SIM115 (open as long as the run)

    def _rewind(self, finished_steps: int) -> None:
        """Drop what was written after the checkpoint; whole lines only."""
        kept = [record for record in read(self.path.parent) if record["step"] <= finished_steps]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(temporary, self.path)

    def write(self, kind: str, step: int, **fields: Any) -> dict[str, Any]:
        record = {"kind": kind, "step": step, **fields}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        return record

    def close(self) -> None:
        self._file.close()
