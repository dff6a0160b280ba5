"""A run's progress → one line that says how well, how fast, and when it will be done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timedelta

SETTLE = 5  # first steps compile, allocate and open files: no measure of the rest


class Console:
    """Speaks on the first rank, is silent on the others."""

    def __init__(self, loud: bool, total: int, done: int):
        self.loud, self.total = loud, total
        self._begun, self._settled_at, self._settled_step = time.monotonic(), None, done + SETTLE

    def say(self, text: str) -> None:
        if self.loud:
            print(text, flush=True)

    def tick(self, step: int) -> None:
        """Note that `step` steps are finished."""
        if self._settled_at is None and step >= self._settled_step:
            self._settled_at = time.monotonic()

    def line(
        self, step: int, loss: float, parts: dict[str, float], norm: float, rate: float, images_a_step: int
    ) -> None:  # fmt: skip
        """`step 120/600  20%  loss 1.234 (low 1.1, high 1.4)  norm 0.87  lr 1.0e-03  380 img/s  eta 3m12s (18:40)`."""
        width = len(str(self.total))
        inside = ", ".join(f"{name} {value:.3f}" for name, value in parts.items())
        inside = f" ({inside})" if len(parts) > 1 else ""
        per_step = self._seconds_per_step(step)
        pace = "eta ..."
        if per_step:
            pace = f"{images_a_step / per_step:.0f} img/s  {_eta((self.total - step) * per_step)}"
        where = f"step {step:>{width}}/{self.total} {100 * step / self.total:3.0f}%"
        self.say(f"{where}  loss {loss:.3f}{inside}  norm {norm:.2f}  lr {rate:.1e}  {pace}")

    def figures(self, title: str, figures: Mapping[str, float]) -> None:
        """Figures named `where/what`, a line for each `what`."""
        lines: dict[str, list[str]] = {}
        for key, value in figures.items():
            where, _, what = key.rpartition("/")
            lines.setdefault(what, []).append(f"{where} {value:.3f}".strip())
        for what, parts in lines.items():
            self.say(f"{title}: {what}  " + "  ".join(parts))

    def _seconds_per_step(self, step: int) -> float | None:
        """Wall time a step since things settled: held-out losses, pictures and saves are in it, as in the rest."""
        if self._settled_at is None or step <= self._settled_step:
            return None
        return (time.monotonic() - self._settled_at) / (step - self._settled_step)

    def elapsed(self) -> str:
        return duration(time.monotonic() - self._begun)


def duration(seconds: float) -> str:
    """`42s`, `3m12s`, `5h07m`, `2d03h`, `3.1 years`."""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    if seconds > 730 * 86400:
        return f"{seconds / 86400 / 365.25:.1f} years"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"


def _eta(seconds: float) -> str:
    finish = datetime.now() + timedelta(seconds=seconds)
    form = "%H:%M" if seconds < 12 * 3600 else "%a %H:%M" if seconds < 6 * 86400 else "%d %b"
    return f"eta {duration(seconds)} ({finish:{form}})"
