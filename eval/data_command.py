"""Turns a recipe into a list of its data sets, what is there and how to get the rest: `python -m eval data RECIPE`."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval import rehearsal
from eval.config import load_recipe
from eval.datasets.split import TRUTHS, WORDS
from eval.suite import Suite
from eval.tasks import TASKS
from teachers.errors import UserError


def main(argv: list[str]) -> int:
    """The command; 0 where every data set is there, 1 where one is absent or not what the recipe expects."""
    parser = argparse.ArgumentParser(prog="python -m eval data", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", metavar="RECIPE", help="a file, or one of recipes/eval/")
    parser.add_argument("--data-root", metavar="DIR", help="folder of the data sets (default: the recipe's)")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key of the recipe")
    arguments = parser.parse_args(argv)
    recipe, path = load_recipe(arguments.recipe, arguments.set)
    suite = Suite(recipe, Path(), Path(arguments.data_root or recipe.data_root).expanduser())
    if suite.rehearsal is not None:
        print(rehearsal.WORDS)
    print(f"{path}: {len(recipe.datasets)} data sets below {suite.data_root}")
    absent = [name for name in recipe.datasets if not _tell(suite, name)]
    print(f"\nabsent: {', '.join(absent)}" if absent else "\nall there")
    return 1 if absent else 0


def _tell(suite: Suite, name: str) -> bool:
    """Print one data set; whether the parts that the recipe's tasks use are all there."""
    config = suite.recipe.datasets[name]
    users = {task: settings for task, settings in suite.recipe.task_settings.items() if settings.data == name}
    parts = sorted({part for settings in users.values() for part in TASKS[settings.task].SPLITS})
    print(f"\n{name} ({config.kind}), asked by {', '.join(users) or 'no task'}")
    for part in parts:
        try:
            split = suite.split(name, part)
        except UserError as error:
            print("  " + str(error).replace("\n", "\n  "))
            return False
        knows = ", ".join(WORDS[kind] for kind in TRUTHS if getattr(split, kind) is not None)
        print(f"  {part}: {split.count} pictures, {knows}; {split.source}; checksum {split.identity}")
    return True
