"""Turns texts that others chose (names, paths, messages) into Markdown that shows them as they stand."""

from __future__ import annotations

import re

# What GitHub's Markdown reads in the middle of a line: emphasis, code, tags, entities, links, strikes, formulas, cells.
_SIGNS = re.compile(r"[\\`*\[\]~$|]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|_+")


def plain(text: object) -> str:
    """One line, in a table or out of it; underscores inside a word mean nothing there and stay bare."""
    line = " ".join(str(text).splitlines())
    return _SIGNS.sub(lambda found: _escaped(line, *found.span()), line)


def _escaped(line: str, begin: int, end: int) -> str:
    signs = line[begin:end]
    inside = line[:begin][-1:].isalnum() and line[end:][:1].isalnum()
    return signs if signs[0] == "_" and inside else "".join(f"\\{sign}" for sign in signs)


def code(text: object) -> str:
    """The same in a code span, in a table: there only pipes are escaped, and the fence is longer than any inside."""
    line = " ".join(str(text).splitlines()).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"
