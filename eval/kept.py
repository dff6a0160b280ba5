"""Moves a score file and its examples aside, to names that end in `.before-DATE`, and back: nothing is overwritten."""

from __future__ import annotations

import glob
import itertools
import os
import time
from pathlib import Path


def examples_file(score: Path) -> Path:
    """Where the examples of the score at `score` stand."""
    return score.with_suffix(".png")


def keep(file: Path) -> None:
    """Move a score and its examples to names that no file has: two changes may fall in one second."""
    plain = f".before-{time.strftime('%Y%m%d-%H%M%S')}"
    marks = (plain if number == 1 else f"{plain}-{number}" for number in itertools.count(1))
    mark = next(mark for mark in marks if not _marked(file, mark).exists())
    os.replace(file, _marked(file, mark))
    if examples_file(file).exists():
        os.replace(examples_file(file), _marked(examples_file(file), mark))


def put_back(kept: Path, file: Path) -> None:
    """Undo `keep`, once nothing stands at `file` that is to stay; the examples first, so that a score has its own."""
    examples = _marked(examples_file(file), kept.name.removeprefix(file.name))
    if examples.exists():
        os.replace(examples, examples_file(file))
    os.replace(kept, file)


def all_kept(file: Path) -> list[Path]:
    """What was kept of `file`, the newest first."""
    return sorted(file.parent.glob(f"{glob.escape(file.name)}.before-*"), reverse=True)


def _marked(file: Path, mark: str) -> Path:
    return file.with_name(file.name + mark)
