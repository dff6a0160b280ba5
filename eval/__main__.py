"""Turns a command line into an evaluation: `python -m eval RECIPE MODEL...`, or Δm% of a plain table: `... delta`."""

from __future__ import annotations

import sys

from teachers.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status: 0, 1 where a task failed, 2 for a user's mistake."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["delta"]:  # needs no torch
            from eval.delta_table import main as command
        else:
            from eval.suite import main as command
        return command(argv[1:] if argv[:1] == ["delta"] else argv)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
