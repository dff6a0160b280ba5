"""A large recipe → one real optimizer step of its first stage at true size on this machine, beside the plan.

    python benchmarks/true_size.py                    radio_b and radio_l: four teachers with random weights, batch 1
    python benchmarks/true_size.py radio_l --json

Real are the networks, their sizes and the arithmetic, DeepSpeed and the optimizer; weights are random
(`weights=random`), the pictures noise, and PHI-S is where it begins: fitting it would take longer than the steps.
radio_l needs 20 GiB of memory and some minutes on two cores. Each recipe runs in a process of its own, whose
memory is watched: what grows from just before the networks are built to the peak is compared with the plan's.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

RECIPES = ("radio_b", "radio_l")


def changes(recipe: str, folder: str) -> list[str]:
    """The overrides: weights that need no download, a batch of one picture, the first stage alone."""
    from radio_distill.recipe import load_recipe

    made = load_recipe(recipe)
    weights = [f"teachers.{name}.weights=random" for name in made.teachers]
    unsharpened = [f"teachers.{name}.sharpen=none" for name, one in made.teachers.items() if one.sharpen != "none"]
    stream = next(iter(made.streams_of(0)))
    stage = f"stages=[{{steps: 2, streams: [{stream}]}}]"
    size = list(made.streams[stream].size[0])
    one = f"streams={{{stream}: {{shards: none, batch: 1, size: [{size}]}}}}"
    return [*weights, *unsharpened, one, stage, "heldout=null", f"run={folder}/run",
            "statistics.cache=null"]  # fmt: skip


def measure(recipe: str, pipe: Any) -> None:
    """In a process of its own: plan, build, step twice; sends the figures."""
    with tempfile.TemporaryDirectory() as folder:
        pipe.send(_measured(recipe, folder))


def _measured(recipe_name: str, folder: str) -> dict[str, Any]:
    import torch

    from radio_distill.dry_run.checks import find_mistakes
    from radio_distill.dry_run.plan import make_plan
    from radio_distill.engine import join_world, leave_world
    from radio_distill.objectives import build_objective
    from radio_distill.recipe import load_recipe
    from radio_distill.stopping import Stopper

    recipe = load_recipe(recipe_name, changes(recipe_name, folder))
    mistakes, teachers = find_mistakes(recipe)
    assert not mistakes, mistakes
    plan = make_plan(recipe, teachers)
    world = join_world(recipe.threads)
    before = _resident()
    begun = time.perf_counter()
    objective = build_objective(recipe, world)
    built = time.perf_counter() - begun
    training = _training()(recipe, objective, world, loud=False)
    stream = next(iter(recipe.streams))
    steps = []
    for _ in range(2):  # the second with moments that are there, as all that follow
        begun = time.perf_counter()
        fields, _, _ = training.one_step({stream: map(training.noise, count())}, Stopper())
        steps.append(time.perf_counter() - begun)
        assert math.isfinite(fields["loss"]), fields
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    leave_world()
    memory = plan.memory(0)
    return {
        "recipe": recipe_name, "loss": fields["loss"], "norm": fields["norm"], "build_s": built,
        "step_s": steps, "tflop": plan.flops_a_step(0) / 1e12, "peak_gib": peak / 2**30,
        "plan_gib": memory.total / 2**30, "plan_parts_gib": {k: v / 2**30 for k, v in memory.rows().items()},
        "parameters": plan.parameters, "threads": torch.get_num_threads(), "cores": os.cpu_count(),
        "precision": [recipe.precision, recipe.teacher_precision],
    }  # fmt: skip


def _training() -> type:
    """The loop, whose pictures are noise."""
    import torch

    from radio_distill.loop import Training
    from radio_distill.views import Batch
    from teachers.seeding import torch_rng

    class OnNoise(Training):
        def noise(self, index: int) -> Batch:
            [(stream, config)] = self.recipe.streams.items()
            rng, views = torch_rng("true size", index), {}
            for size in self.objective.sizes(stream, 0):
                views[size] = torch.randint(0, 256, (config.batch, 3, *size), generator=rng, dtype=torch.uint8)
            return Batch(views, ["noise"] * config.batch, stream, 0)

    return OnNoise


def _resident() -> int:
    """Bytes of this process that are in memory now."""
    import psutil

    return psutil.Process().memory_info().rss


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=RECIPES, metavar="RECIPE", help="default: radio_b radio_l")
    parser.add_argument("--json", action="store_true", help="one JSON object a recipe")
    options = parser.parse_args(arguments)
    spawn = multiprocessing.get_context("spawn")
    for recipe in options.recipes:
        ours, theirs = spawn.Pipe(duplex=False)
        worker = spawn.Process(target=measure, args=(recipe, theirs))
        worker.start()
        theirs.close()
        try:
            found = ours.recv()
        except EOFError:
            worker.join()
            print(f"{recipe}: the process ended with {worker.exitcode} (−9: not enough memory)", file=sys.stderr)
            return 1
        worker.join()
        print(json.dumps(found) if options.json else "\n".join(_lines(found)), flush=True)
    return 0


def _lines(found: dict[str, Any]) -> list[str]:
    steps = ", ".join(f"{seconds:.1f}" for seconds in found["step_s"])
    parts = ", ".join(f"{name} {value:.2f}" for name, value in found["plan_parts_gib"].items())
    off = found["plan_gib"] / found["peak_gib"] - 1
    return [
        f"{found['recipe']}: loss {found['loss']:.4f}, gradient norm {found['norm']:.3f}",
        f"  built in {found['build_s']:.1f} s, steps {steps} s "
        f"({found['tflop']:.2f} TFLOP each by the plan; {found['threads']} threads)",
        f"  memory {found['peak_gib']:.2f} GiB, plan {found['plan_gib']:.2f} ({off:+.1%}): {parts}",
    ]


if __name__ == "__main__":
    sys.exit(main())
