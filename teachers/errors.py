"""Turns a user's mistake into one message: what happened, where, what was expected, what to type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something that the person at the keyboard can mend; commands print its text alone and exit with 2.

    Args:
        what: what is wrong and where (recipe path and key, shard and sample, file), in one sentence.
        expected: what would have been right.
        todo: what to type, or to change, next.
    """

    def __init__(self, what: str, *, expected: str | None = None, todo: str | None = None):
        self.what, self.expected, self.todo = what, expected, todo
        lines = [what]
        if expected:
            lines.append(f"  expected: {expected}")
        if todo:
            lines.append(f"  do this:  {todo}")
        super().__init__("\n".join(lines))


@contextmanager
def collected(into: list[UserError], where: str = "") -> Iterator[None]:
    """Inside, a `UserError` is kept in `into` and ends the block, so that the next one is found too.

    `where`: a key's path for the front of the text, where the text does not name the key itself.
    """
    try:
        yield
    except UserError as error:
        into.append(at(where, error))


def at(where: str, error: UserError) -> UserError:
    """The same error with a key's path in front."""
    if not where or where in error.what:
        return error
    return UserError(f"{where}: {error.what}", expected=error.expected, todo=error.todo)
