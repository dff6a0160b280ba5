"""A recipe on the command line → a trained student, or a trained sharpener, in its run folder."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from radio_distill.recipe import Recipe
    from teachers.errors import UserError

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

USAGE = """\
examples:
  deepspeed radio_distill/train.py recipes/quickstart.yaml            as many ranks as there are accelerators
  torchrun --nproc-per-node 2 radio_distill/train.py RECIPE           the same, started by torch
  python radio_distill/train.py RECIPE teachers.clip.sharpen=bilinear one process; any key of the recipe, changed
  python radio_distill/train.py RECIPE dry_run=true                   the plan: cost, memory, hours, what is missing
  python radio_distill/train.py RECIPE rehearse=true                  a step of every stage at true size, without memory

The same command resumes a run that was stopped or killed. Keys (NAME is yours to choose, N counts from 0):
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0 finished or stopped on request, 2 what was explained, 130 a second ^C."""
    from teachers.errors import UserError

    options = parse(arguments)
    rank = int(os.environ.get("RANK", 0))
    try:
        return start(options)
    except UserError as error:
        # Every rank meets the same mistakes: one voice is enough.
        if rank == 0 or _is_own(error):
            print(f"\n{error}", file=sys.stderr, flush=True)
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        what = f"{error.filename or 'a file'} could not be written: {error.strerror}"
        print(f"\n{what}\n  do this:  make room, then run the same command again", file=sys.stderr, flush=True)
    except RuntimeError as error:
        if not _lost_a_peer(error):
            raise
        print(f"rank {rank} stops: another rank has ended, and says why", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        return 130
    return 2


def _enter(stack: ExitStack, recipe: Recipe) -> UserError | None:
    """Hold the run folder; returns why it cannot be had."""
    from radio_distill import run_folder
    from teachers.errors import UserError

    try:
        stack.enter_context(run_folder.opened(recipe))
    except UserError as error:
        return error
    return None


def _is_own(error: Exception) -> bool:
    from radio_distill.engine import RankError

    return isinstance(error, RankError)


def _lost_a_peer(error: RuntimeError) -> bool:
    from radio_distill.engine import is_lost_peer

    return is_lost_peer(error)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line. DeepSpeed's launcher puts --local_rank in front of the user's own words."""
    from radio_distill import documents
    from radio_distill.recipe import Recipe

    class Help(argparse.Action):
        def __call__(self, parser, *_):
            rows = [f"  {key:<38} {documents.type_name(kind):<30} {default:<12} {text}".rstrip()
                    for key, kind, default, text in documents.keys(Recipe)]  # fmt: skip
            wrapped = [textwrap.fill(row, 150, subsequent_indent=" " * 41) for row in rows]
            print(parser.format_help() + "\n".join(wrapped))
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
    return parser.parse_args(arguments)


def _checked_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe; what its schema finds and what its networks would find is said in one answer."""
    from radio_distill.documents import Invalid
    from radio_distill.recipe import load_recipe
    from teachers.errors import UserError

    try:
        return load_recipe(options.recipe, options.overrides)
    except Invalid as error:
        if error.repaired is None:
            raise
        from radio_distill.dry_run.checks import find_mistakes

        more = find_mistakes(error.repaired)[0]
        if not more:
            raise
        raise UserError("\n".join([str(error), "and, with the keys that are meant:", *map(str, more)])) from None


def start(options: argparse.Namespace) -> int:
    """Check everything, then train."""
    from radio_distill import documents

    recipe = _checked_recipe(options)
    source = str(documents.find_document(options.recipe))
    if recipe.dry_run:
        from radio_distill.dry_run.plan import print_plan

        return print_plan(recipe, source)
    if recipe.rehearse:
        from radio_distill.dry_run.rehearsal import print_rehearsal

        return print_rehearsal(recipe, source)
    from radio_distill import run_folder
    from radio_distill.dry_run.checks import check_inputs
    from radio_distill.stopping import Stopper

    if run_folder.finished(recipe):
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"run {recipe.run} is finished: {recipe.folder / run_folder.EXPORT}   (restart=true begins it anew)")
        return 0
    check_inputs(recipe, source)
    stopper = Stopper()

    from radio_distill.engine import join_world, leave_world
    from radio_distill.loop import train
    from radio_distill.objectives import build_objective

    world = join_world(recipe.threads)
    with ExitStack() as stack:
        stack.callback(leave_world)
        world.agree(_enter(stack, recipe) if world.first else None)
        train(recipe, build_objective(recipe, world), world, stopper)
    return 0


if __name__ == "__main__":
    sys.exit(main())
