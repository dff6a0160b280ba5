"""Trains the miniature of FeatSharp's table 2, students of differently sharpened teachers, and scores them as Δm%.

    python benchmarks/table2.py                       # every arm, seeds 0 to 2; start it once a free core
    python benchmarks/table2.py --only none featsharp --seeds 0
    python benchmarks/table2.py --report-only         # scores and report of what is trained so far

Both teachers of the tabletop are enlarged twice by one means an arm (FeatSharp, arXiv 2502.16025, table 2): not at all
(the baseline: the student's map is brought to the teacher's grid), tiles, S2, FeatUp, FeatSharp. Steps, data, order and
initialisation are the same in every arm; a seed trains its own sharpeners, so that their chance is in the intervals
too. The suite then scores all students (`--eval`), seeds of an arm as repetitions of one model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import arms
from arms import Arm, Trial

from eval.scores import MetricScore
from radio_distill import journal
from radio_distill.recipe import load_recipe

NAME = "table2"
EVAL = "recipes/eval/tabletop.yaml"
KEY = "table 2, 1"  # raised when students stop being comparable with earlier ones
SHARPENER = "recipes/featsharp/tabletop_clip.yaml"
TRAINED = ("featup", "featsharp")  # upsamplers that learn
# More of the large pictures than the ablation has: only those meet a sharpened teacher.
COMMON = ("streams.low.batch=8", "streams.high.batch=4")
ARMS = {
    arm.name: arm
    for arm in (
        Arm("none", "unsharpened (baseline)"),
        Arm("tile", "Tile"),
        Arm("s2", "S2"),
        Arm("featup", "FeatUp"),
        Arm("featsharp", "FeatSharp"),
        Arm("bilinear", "bilinear"),
    )
}


def sharpener_folder(out: Path, upsampler: str, teacher: str, seed: int | str) -> Path:
    return out / "sharpeners" / f"{upsampler}-{teacher}-seed{seed}"


def sharpeners(options: argparse.Namespace) -> list[Trial]:
    """A training for each upsampler that learns, teacher of the students' recipe and seed."""
    found, teachers = [], load_recipe(options.recipe).teachers
    for seed in options.seeds:
        for upsampler in (name for name in TRAINED if name in options.only):
            for name, teacher in teachers.items():
                built = json.dumps({name: teacher.model_dump(mode="json", include={"encoder", "weights", "options"})})
                run = sharpener_folder(options.out, upsampler, name, seed)
                overrides = [
                    f"teachers={built}", f"sharpener.upsampler={upsampler}", *options.set_sharpener,
                    f"seed={seed}", f"run={run}", f"threads={options.threads}",
                ]  # fmt: skip
                arm, recipe = Arm(f"{upsampler}-{name}", f"{upsampler} for {name}"), options.sharpener
                found.append(Trial(arm, seed, load_recipe(recipe, overrides), (recipe, *overrides)))
    return found


def students(options: argparse.Namespace) -> list[Trial]:
    """An arm names its upsampler, or the sharpeners that its seed has trained."""
    sharpened, teachers = {}, load_recipe(options.recipe).teachers
    for arm in ARMS.values():
        means = {t: sharpener_folder(options.out, arm.name, t, "${seed}") for t in teachers}
        means = means if arm.name in TRAINED else dict.fromkeys(teachers, arm.name)
        sharpened[arm.name] = replace(arm, overrides=tuple(f"teachers.{t}.sharpen={m}" for t, m in means.items()))
    return arms.trials(options, sharpened, COMMON)


def last_errors(trial: Trial) -> dict[str, MetricScore]:
    """What the run's own last look at held-out pictures says, for the console."""
    records = [record for record in journal.read(trial.folder) if record["kind"] == "heldout"]
    last = records[-1] if records else {}
    return {
        name: MetricScore(value=value, direction="lower" if "error" in name else "higher", unit="", n=0)
        for name, value in last.items()
        if name.endswith(("feature_error", "fidelity", "bilinear"))
    }


def evaluation(options: argparse.Namespace, trained: Sequence[Trial]) -> list[str]:
    """The suite's arguments: a name an arm, so that its seeds are repetitions."""
    models = [f"{trial.arm.name}={trial.folder}" for trial in trained]
    overrides = [word for override in options.set for word in ("--set", override)]
    return [options.eval, *models, "--baseline", next(iter(ARMS)), "--out", str(options.out / "report"), *overrides]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = arms.command_line(__doc__, ARMS, f"runs/{NAME}")
    parser.add_argument("--sharpener", default=SHARPENER, metavar="RECIPE", help=f"of the sharpeners [{SHARPENER}]")
    parser.add_argument(
        "--set-sharpener", action="append", default=[], metavar="KEY=VALUE", help="override a key of that recipe"
    )
    parser.add_argument("--eval", default=EVAL, metavar="RECIPE", help=f"of the suite [{EVAL}]")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of that recipe")
    parser.add_argument("--train-only", action="store_true", help="leave scoring to another command")
    options = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else list(arguments))
    wanted = students(options)  # before hours go into sharpeners: a mistake in either recipe is said at once
    if not options.report_only:
        failed = arms.train_all(options, sharpeners(options), last_errors, KEY)
        failed += arms.train_all(options, wanted, last_errors, KEY)
        if failed or options.train_only:
            return 1 if failed else 0
    trained = [trial for trial in wanted if arms.read(trial, KEY) is not None]
    from eval.__main__ import main as evaluate

    return evaluate(evaluation(options, trained))


if __name__ == "__main__":
    raise SystemExit(arms.guarded(main))
