"""Trains every upsampler for one teacher under one protocol, several seeds each, and reports their fidelity.

    python benchmarks/shelf.py recipes/featsharp/lite0.yaml --steps 500 --out runs/shelf/lite0_steps
    python benchmarks/shelf.py recipes/featsharp/lite0.yaml --seconds 120 --out runs/shelf/lite0_seconds
    python benchmarks/shelf.py RECIPE --steps 500 --only featup featup_seven_taps --seeds 0 1 2 --out FOLDER

All upsamplers of a seed go side by side: the teacher is shown each batch once, and they learn from the same views.
With `--seconds` each has a budget of its own, of which are taken the batch, the teacher's passes that it alone would
need, and its own forward, backward and step; the learning rate follows what is spent. A seed that is finished is left
as it is; several commands with different `--seeds` and one folder may run at once. At the end every finished run in
the folder is judged (`python -m featsharp.fidelity`). `featup_seven_taps` is FeatUp with the filter gradient of the
public extension.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median

import torch
import yaml
from jbu import public_filter_gradient

from featsharp import fidelity_command
from featsharp.consistency import Sight
from featsharp.task import SharpenObjective
from radio_distill.engine import World, autocast, choose_precision
from radio_distill.objectives import build_objective
from radio_distill.optimisers import build_optimizer
from radio_distill.recipe import Recipe, load_recipe
from radio_distill.run_folder import write_text
from radio_distill.schedule import learning_rate
from radio_distill.shards import ShardStream
from teachers.seeding import seed_of, torch_rng

SHELF = (
    "featsharp", "featsharp_release", "featsharp_slim", "featup", "featup_seven_taps", "bilinear", "nearest", "tile",
    "s2", "carafe", "sapa", "resfu", "jafar", "anyup", "naf",
)  # fmt: skip
ALONE = 5  # timings of what a teacher costs an upsampler that wants no tiles


class Contender:
    """One upsampler in training: its objective, its optimiser, what it has spent."""

    def __init__(self, name: str, recipe: Recipe, world: World):
        self.name, self.recipe = name, recipe
        self.context: Callable[[], AbstractContextManager] = nullcontext
        if name == "featup_seven_taps":
            self.context = public_filter_gradient
        self.objective: SharpenObjective = build_objective(recipe, world)
        self.autocast = autocast(choose_precision(recipe.precision, world.device)[0], world.device)
        groups = self.objective.param_groups(recipe.optim.lr, recipe.optim.weight_decay)
        self.optimizer = build_optimizer(recipe.optim, groups, world.device)
        self.parameters = [p for group in groups for p in group["params"]]
        self.steps, self.seconds = 0, 0.0

    @property
    def needs_tiles(self) -> bool:
        return self.objective.model.adapter.upsampler.needs_tiles

    def learn(self, sight: Sight, progress: float) -> None:
        """One optimiser step, at the learning rate of so large a share of the training."""
        rate = learning_rate(self.recipe, int(progress * self.recipe.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self.objective.model.train()
        with self.context():
            with self.autocast():
                loss, _ = self.objective.model(sight if self.needs_tiles else sight._replace(tiles=None))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def save(self) -> None:
        """Leave what a training leaves: the recipe, and the export last."""
        folder = self.recipe.folder
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "recipe.yaml", yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False))
        write_text(folder / "spent.json", json.dumps({"steps": self.steps, "seconds": round(self.seconds, 1)}) + "\n")
        self.objective.artefact(folder / "export")


def recipe_of(options: argparse.Namespace, name: str, seed: int) -> Recipe:
    """The recipe on the command line, for one upsampler and seed."""
    overrides = [f"sharpener.upsampler={name.removesuffix('_seven_taps')}", f"seed={seed}"]
    overrides += [f"run={options.out / f'{name}-seed{seed}'}", *options.overrides]
    if options.steps:
        overrides.append(f"stages=[{{steps: {options.steps}}}]")
    return load_recipe(options.recipe, overrides)


def compete(contenders: Sequence[Contender], seconds: float | None, clock: Callable[[], float]) -> None:
    """Train all of one seed to their ends; each is saved when it gets there."""
    recipe = contenders[0].recipe
    leader = next((c for c in contenders if c.needs_tiles), contenders[0]).objective
    [(name, config)] = recipe.streams.items()

    def sizes(index: int):
        return leader.sizes(name, index)

    def batches():
        with ShardStream(config, name, seed_of("statistics", recipe.seed), sizes) as stream:
            yield from (next(stream) for _ in range(recipe.statistics.batches))

    for contender in contenders:  # the first fits them, the others find them in the cache
        contender.objective.begin_stage(0, batches, f"shelf {config.shards} seed {recipe.seed}")
    plain = next((c.objective for c in contenders if not c.needs_tiles), leader)
    alone: list[float] = []  # seconds that a teacher takes without tiles
    with ShardStream(config, name, recipe.seed, sizes) as stream:
        running, step = list(contenders), 0
        while running:
            begun = clock()
            images = next(stream).float(leader.image_size)
            read = clock() - begun
            place = ("step", recipe.seed, step, name, 0)
            if len(alone) < ALONE or step % 50 == 0:
                began = clock()
                plain.see(images, torch_rng(*place), drop=True)
                alone.append(clock() - began)
            began = clock()
            sight = leader.see(images, torch_rng(*place), drop=True)
            seen = clock() - began
            for contender in list(running):
                torch.manual_seed(seed_of(*place))
                began = clock()
                progress = contender.seconds / seconds if seconds else contender.steps / recipe.steps
                contender.learn(sight, progress)
                contender.seconds += read + (seen if contender.needs_tiles else median(alone))
                contender.seconds += clock() - began
                if contender.seconds >= seconds if seconds else contender.steps >= recipe.steps:
                    contender.save()
                    running.remove(contender)
                    print(f"{contender.recipe.run}: {contender.steps} steps, {contender.seconds:.0f} s", flush=True)
            step += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="of `task: sharpen`; its upsampler and steps are exchanged")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help="of every upsampler [the recipe's]")
    budget.add_argument("--seconds", type=float, help="of every upsampler, instead of steps")
    parser.add_argument("--only", nargs="+", choices=SHELF, default=SHELF, metavar="NAME", help=", ".join(SHELF))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of the report")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-report", action="store_true", help="leave the judging to a later command")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    world = World(0, 0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    # On one thread of a CPU its own time, in which other programs have no part.
    alone = world.device.type == "cpu" and options.threads == 1
    clock = time.process_time if alone else time.perf_counter
    for seed in options.seeds:
        recipes = {name: recipe_of(options, name, seed) for name in options.only}
        missing = {name: r for name, r in recipes.items() if not (r.folder / "export" / "config.json").is_file()}
        if missing:
            compete([Contender(name, recipe, world) for name, recipe in missing.items()], options.seconds, clock)
    if options.no_report:
        return 0
    runs = sorted(path.parents[1] for path in options.out.glob("*/export/config.json"))
    return fidelity_command.main([*map(str, runs), "--out", str(options.out), "--device", str(world.device)])


if __name__ == "__main__":
    raise SystemExit(main())
