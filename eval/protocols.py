"""Turns the registries of tasks and data sets into the tables of docs/evaluation.md: `python -m eval protocols`."""

from __future__ import annotations

import argparse
import re
import textwrap
from pathlib import Path
from types import ModuleType

from eval.datasets import DATASETS
from eval.tasks import TASKS
from teachers.errors import UserError

WIDTH = 120
FITS = {"crop": "centre", "stretch": "whole", "pad": "whole, padded"}


def main(argv: list[str]) -> int:
    """The command: print every protocol and layout, or write them into a page that has a place for them."""
    parser = argparse.ArgumentParser(prog="python -m eval protocols", description=__doc__.splitlines()[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help="tasks, kinds of data set (default: all)")
    parser.add_argument("--write", metavar="PAGE", help="put the tables between the page's <!-- NAME --> comments")
    arguments = parser.parse_args(argv)
    odd = [name for name in arguments.names if name not in {**TASKS, **DATASETS}]
    if odd:
        raise UserError(f"no task or data set is named {odd[0]!r}", expected=", ".join([*TASKS, *DATASETS]))
    if arguments.write:
        page = Path(arguments.write)
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"wrote {page}")
        return 0
    names = arguments.names or [*TASKS, *DATASETS]
    print("\n\n".join(_entry(name) for name in names))
    return 0


def blocks() -> dict[str, str]:
    """Name of a place in the page → what stands there."""
    return {"tasks": task_table(), "protocols": protocols(), "data": data_table()}


def filled(page: str) -> str:
    """The page with every `<!-- NAME -->...<!-- /NAME -->` renewed; `UserError` where it lacks one."""
    for name, text in blocks().items():
        place = re.compile(rf"(<!-- {name} -->).*?(<!-- /{name} -->)", re.DOTALL)
        if not place.search(page):
            raise UserError(f"the page has no place for {name}", expected=f"<!-- {name} --> and <!-- /{name} -->")
        page = place.sub(lambda found, text=text: f"{found[1]}\n\n{text}\n\n{found[2]}", page)
    return page


def task_table() -> str:
    """What each task is, a line a task."""
    rows = [
        "| task | what it turns into what | column of Δm% | seeds | pictures | parts |",
        "|---|---|---|---|---|---|",
    ]
    for name, module in TASKS.items():
        group = module.GROUP if module.COUNTS else f"{module.GROUP} (shown only)"
        seeds, fit = "yes" if module.SEEDED else "–", FITS[module.FIT]
        rows.append(f"| `{name}` | {_about(module)} | {group} | {seeds} | {fit} | {', '.join(module.SPLITS)} |")
    return "\n".join(rows)


def protocols() -> str:
    """The protocol of each task, in words."""
    return "\n\n".join(f"**`{name}`**, version {task.VERSION}. {task.PROTOCOL}" for name, task in TASKS.items())


def data_table() -> str:
    """What each kind of data set reads, a line a kind."""
    rows = ["| kind | what it reads | folder | where to get it |", "|---|---|---|---|"]
    for name, module in DATASETS.items():
        layout, get = _layout(module)
        rows.append(f"| `{name}` | {_about(module)} | {f'`{layout}`' if layout else '–'} | {get or '–'} |")
    return "\n".join(rows)


def _entry(name: str) -> str:
    """A task or a data set on the console."""
    if name in TASKS:
        module = TASKS[name]
        head = f"task {name}  ({module.GROUP}, version {module.VERSION})"
        return f"{head}\n{_wrapped(_about(module))}\n{_wrapped(module.PROTOCOL)}"
    layout, get = _layout(DATASETS[name])
    lines = [_about(DATASETS[name]), layout and f"folder: {layout}", get]
    return "\n".join([f"data set {name}", *(_wrapped(line) for line in lines if line)])


def _about(module: ModuleType) -> str:
    """A module's first sentence, without its full stop, safe in a table."""
    return module.__doc__.split("\n\n")[0].replace("\n", " ").strip().rstrip(".").replace("|", "\\|")


def _layout(module: ModuleType) -> tuple[str, str]:
    """The layout of a data set and where to get it, as its reader says them; "" where it says nothing."""
    get = module.Config.model_fields.get("get")
    return getattr(module, "LAYOUT", ""), str(get.default) if get else ""


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
