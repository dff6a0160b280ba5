"""Files that we write → a folder that holds all of them or none, and keeps whatever else lies in it.

A folder is only ever replaced where it is one that this program has written before; what a user has put beside our
files is carried over. A process that is killed loses nothing: the next one puts back what it finds.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from teachers.errors import UserError

SHOWN = 3  # names of strange files that a message lists


class FolderWriter:
    """A new folder to write into, which takes the place of `place` at the end, or vanishes where that fails.

    Args:
        is_ours: whether a folder that stands in this place was written by us, by what it holds.
        what: in words, what is written ("an exported student").
        names: of the files that it may hold; of an older one they are not carried over.

    Raises `UserError` where `place` is a file, or a folder with anything in it that is not ours.
    """

    def __init__(self, place: Path, is_ours: Callable[[Path], bool], what: str, names: Collection[str]):
        self.place, self.names = place.resolve(), names  # of a link, what it points to
        self.new, self.old = (self.place.with_name(f".{self.place.name}.{end}") for end in ("tmp", "old"))
        self._restore()
        check_replaceable(place, is_ours, what)

    def __enter__(self) -> Path:
        shutil.rmtree(self.new, ignore_errors=True)
        self.new.mkdir(parents=True)
        return self.new

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self.new, ignore_errors=True)
            return
        if self.place.exists():
            os.replace(self.place, self.old)
        os.replace(self.new, self.place)
        self._restore()

    def _restore(self) -> None:
        """Put back what lies in the old folder and not in the new one, and remove the old one."""
        if not self.old.exists():
            return
        if not self.place.exists():  # killed between the two renames
            os.replace(self.old, self.place)
            return
        for kept in self.old.iterdir():
            if kept.name not in self.names and not (self.place / kept.name).exists():
                os.replace(kept, self.place / kept.name)
        shutil.rmtree(self.old, ignore_errors=True)


def says(config: Path, key: str, value: str) -> bool:
    """Whether a JSON file is there, can be read, and has this value at this key."""
    try:
        about = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and about.get(key) == value


def check_replaceable(place: Path, is_ours: Callable[[Path], bool], what: str) -> None:
    """Raise `UserError` where writing `what` to `place` would replace something that we have not made."""
    if place.is_file() or place.is_symlink() and not place.exists():
        raise UserError(f"{place} is a file", expected=f"a folder for {what}", todo="name another place")
    if not place.exists() or is_ours(place):
        return
    strange = sorted(entry.name for entry in place.iterdir())
    if strange:
        more = ", ..." if len(strange) > SHOWN else ""
        raise UserError(
            f"{place} holds other things ({', '.join(strange[:SHOWN])}{more}): nothing was written",
            expected=f"a new or empty folder, or one that holds {what}",
            todo="name another place, such as a folder in it",
        )
