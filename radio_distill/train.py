"""A recipe on the command line → a trained student, or a trained sharpener, in its run folder."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

USAGE = """\
examples:
  deepspeed radio_distill/train.py recipes/quickstart.yaml            as many ranks as there are accelerators
  torchrun --nproc-per-node 2 radio_distill/train.py RECIPE           the same, started by torch
  python radio_distill/train.py RECIPE teachers.clip.sharpen=bilinear one process; any key of the recipe, changed
  python radio_distill/train.py RECIPE dry_run=true                   the plan: cost, memory, hours, what is missing

The same command resumes a run that was stopped or killed. Keys (NAME is yours to choose, N counts from 0):
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0 finished or stopped on request, 2 a mistake that was explained."""
    from teachers.errors import UserError

    options = parse(arguments)
    rank = int(os.environ.get("RANK", 0))
    try:
        return start(options)
    except UserError as error:
        # Every rank meets the same mistakes before training starts: one voice is enough. Later ones are a rank's own.
        if rank == 0 or options.started:
            print(f"\n{error}", file=sys.stderr, flush=True)
        return 2


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line. DeepSpeed's launcher puts --local_rank in front of the user's own words."""
    from radio_distill import documents
    from radio_distill.recipe import Recipe

    class Help(argparse.Action):
        def __call__(self, parser, *_):
            rows = [f"  {key:<38} {documents.type_name(kind):<30} {default:<12} {text}".rstrip()
                    for key, kind, default, text in documents.keys(Recipe)]  # fmt: skip
            print(parser.format_help() + "\n".join(rows))
            parser.exit()

    parser = argparse.ArgumentParser(
        prog="train.py",
        description=__doc__,
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of one that is shipped")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    parser.add_argument("-h", "--help", nargs=0, action=Help, help="this text")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.started = False
    return options


def start(options: argparse.Namespace) -> int:
    """Check everything, then train."""
    from radio_distill import documents
    from radio_distill.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    if recipe.dry_run:
        from radio_distill.plan import print_plan

        return print_plan(recipe, str(documents.find_document(options.recipe)))
    from radio_distill import run_folder
    from radio_distill.plan import check_inputs

    if run_folder.finished(recipe):
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"run {recipe.run} is finished: {recipe.folder / run_folder.EXPORT}   (restart=true begins it anew)")
        return 0
    check_inputs(recipe)

    from radio_distill.engine import join_world, leave_world
    from radio_distill.loop import train
    from radio_distill.objectives import build_objective

    world = join_world(recipe.threads)
    with ExitStack() as stack:
        stack.callback(leave_world)
        if world.first:
            stack.enter_context(run_folder.opened(recipe))
        world.barrier()
        objective = build_objective(recipe, world)
        options.started = True
        train(recipe, objective, world)
    return 0


if __name__ == "__main__":
    sys.exit(main())
