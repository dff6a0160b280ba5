"""The catalogue on the console: `python -m teachers` (all of it), `python -m teachers NAME` (one, with its options)."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.table import Table

from teachers.catalogue import entry_of, entry_options, locate, missing
from teachers.entries import ALIASES, CATALOGUE, Entry
from teachers.errors import UserError

KINDS = {"hf:": "HF cache", "wheel:": "wheel", "shipped:": "shipped", "random": "seed"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m teachers",
        description="The encoders that can teach: sizes, widths, licences, and where their weights are or how to get "
        "them. Nothing is built or downloaded.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="show these, with the options that they take")
    arguments = parser.parse_args(argv)
    console = Console(highlight=False)
    try:
        if arguments.names:
            for name in arguments.names:
                _show_one(console, name)
        else:
            _show_all(console)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _show_all(console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("name", "pixels", "grid", "summary", "spatial", "params", "weights", "licence"):
        right = column in ("summary", "spatial", "params")
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "licence")
    for name, entry in CATALOGUE.items():
        facts = _facts(entry)
        table.add_row(name, *(facts[key] for key in ("pixels", "grid", "summary", "spatial", "params")), *_have(name))
    console.print(table)
    console.print()
    console.print(_pairs({name: entry.about for name, entry in CATALOGUE.items()}))
    console.print("\nNames of torch.hub are known too: " + ", ".join(ALIASES))
    to_get = {name: _how(name) for name, entry in CATALOGUE.items() if entry.weights and missing(name)}
    if to_get:
        console.print("\nTo get the weights that are missing (or give weights=FILE in the recipe):")
        for name, command in to_get.items():
            console.print(f"{name:<{max(map(len, to_get))}}  {command}", soft_wrap=True)  # one line, to be copied


def _show_one(console: Console, name: str) -> None:
    options = entry_options(name)  # first: it raises for a name that is not in the catalogue
    entry = entry_of(name)
    facts = {**_facts(entry), "licence": entry.licence or "the weights' own"}
    if entry.weights or "model" in entry.options:
        facts["weights"] = _how(name) if missing(name) else locate(name)
    defaults = {key: entry.options.get(key, parameter.default) for key, parameter in options.items()}
    facts["options"] = ", ".join(key if value is None else f"{key}={value}" for key, value in defaults.items())
    console.print(f"{name}: {entry.about}", soft_wrap=False)
    console.print(_pairs(facts))


def _facts(entry: Entry) -> dict[str, str]:
    grid = "" if entry.size is None else "×".join(str(side // entry.patch) for side in entry.size)
    return {
        "pixels": "" if entry.size is None else "×".join(map(str, entry.size)),
        "grid": grid,
        "summary": "" if entry.dims is None else str(entry.dims.summary or "none"),
        "spatial": "" if entry.dims is None else str(entry.dims.spatial),
        "params": ""
        if entry.parameters is None
        else f"{entry.parameters / 1e6:.{1 if entry.parameters < 1e7 else 0}f} M",
    }


def _have(name: str) -> tuple[str, str]:
    """Where the weights are in a word or two, and their licence."""
    entry = CATALOGUE[name]
    if entry.weights is None:
        return "yours", "their own"
    kind = next(word for prefix, word in KINDS.items() if entry.weights.startswith(prefix))
    return "missing" if missing(name) else kind, (entry.licence or "").partition(" (")[0]


def _how(name: str) -> str:
    """The command in the message about missing weights, else all of it."""
    lines = (missing(name) or "").splitlines()
    commands = [line.partition("do this:")[2].partition("   (")[0].strip() for line in lines]
    return next(filter(None, commands), " ".join(lines))


def _pairs(pairs: dict[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in pairs.items():
        if value:
            grid.add_row(key, value)
    return grid


if __name__ == "__main__":
    sys.exit(main())
