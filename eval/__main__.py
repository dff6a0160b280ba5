"""Turns a command line into an evaluation, `python -m eval RECIPE MODEL...`, or into one of the commands below."""

from __future__ import annotations

import importlib
import os
import sys

from teachers.errors import UserError

COMMANDS = {  # first word → the module with its `main(argv)`; anything else is a recipe
    "delta": "eval.delta_table",  # Δm% of a plain table; needs no torch
    "published": "eval.published_command",  # published figures, and whether their Δm% follow; needs no torch
    "data": "eval.data_command",  # which data sets of a recipe are there
    "protocols": "eval.protocols",  # what every task does and every data set looks like
}


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status: 0, 1 where a task failed, 2 for a user's mistake, 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] and argv[0] in COMMANDS:
            return _listing(argv)
        return importlib.import_module("eval.suite_command").main(argv)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped: the same command goes on from here.", file=sys.stderr)
        return 130


def _listing(argv: list[str]) -> int:
    """One of `COMMANDS`; a reader that has seen enough of its lines (`| head`) is no mistake."""
    try:
        status = importlib.import_module(COMMANDS[argv[0]]).main(argv[1:])
        sys.stdout.flush()  # a closed pipe shows here, not in the interpreter's last breath
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
