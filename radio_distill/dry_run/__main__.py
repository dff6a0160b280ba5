"""Every shipped recipe → one line that says whether it could start, and how far plan and rehearsal are apart.

    python -m radio_distill.dry_run                      all recipes that this package ships
    python -m radio_distill.dry_run radio_l quickstart   these
    python -m radio_distill.dry_run --part 1/2           every second one, beginning with the first
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from radio_distill import documents
from teachers.errors import UserError


def shipped() -> list[str]:
    """The names of all recipes that train something; a new file is found by itself."""
    folder = documents.shipped_recipes()
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.yaml"))]
    return [name for name in names if "task" in documents.read(folder / name)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 where a recipe cannot be rehearsed or its plan is off."""
    parser = argparse.ArgumentParser(prog="python -m radio_distill.dry_run", description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="default: all that are shipped")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="only every N-th recipe, from the I-th")
    options = parser.parse_args(arguments)
    first, step = map(int, options.part.split("/"))
    names = (options.recipes or shipped())[first - 1 :: step]
    failed = [name for name in names if not _rehearsed(name)]
    print(f"{len(names) - len(failed)} passed, {len(failed)} failed", flush=True)
    return 1 if failed else 0


def _rehearsed(name: str) -> bool:
    from radio_distill.dry_run.rehearsal import compare_with_plan
    from radio_distill.recipe import load_recipe

    begun, lines = time.perf_counter(), []
    try:
        found = compare_with_plan(load_recipe(name), name, lines.append)
        wrong = found.disagreements
    except UserError as error:
        wrong = [str(error)]
    spent = f"{time.perf_counter() - begun:.0f} s"
    if wrong:
        print(f"{name}: FAILED after {spent}", *lines, *wrong, sep="\n  ", flush=True)
        return False
    teraflops = max(step.all_flops for step, _ in found.steps) / 1e12
    rehearsed, planned = max(found.memory.values(), key=lambda pair: pair[0].total)
    print(
        f"{name}: {len(found.steps)} steps, up to {teraflops:.4g} TFLOP; {rehearsed.total / 2**30:.2f} GiB "
        f"(plan {planned.total / rehearsed.total - 1:+.1%}); {spent}", flush=True
    )  # fmt: skip
    return True


if __name__ == "__main__":
    sys.exit(main())
