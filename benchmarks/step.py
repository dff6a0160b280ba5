"""Measures the trainer's step against what it cannot do without: the teachers' forward, the student's both ways.

    python benchmarks/step.py                                   # a table
    python benchmarks/step.py --json                            # one object a line: bare, default
    python benchmarks/step.py --steps 20 student.arch=vit_base streams.low.batch=8      # any key of the recipe

The recipe has no options on: two frozen teachers (EfficientNet-Lite0, and a ViT-S/16 with random weights), a ViT-S/16
student, one stream of JPEGs (384 px) at 224 px that the trainer's own process decodes, so no wait for it is hidden.
Every step of the trainer's loop is followed by one bare pass of the same modules over the same sizes; `ratio` is the
median over such pairs, so a machine that slows down slows both. `wait` is the share of a step spent on the loader.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from statistics import median

import torch
import yaml
from torch import nn

from radio_distill import loop
from radio_distill.engine import join_world, leave_world
from radio_distill.objectives import build_objective
from radio_distill.recipe import Recipe, load_recipe
from radio_distill.stopping import Stopper

sys.path.insert(0, str(Path(__file__).parent))
from loader import make_shards

PICTURES = 400  # in the shards
WARM = 2  # steps before the first that counts
MOST_RATIO, MOST_WAIT = 1.15, 0.05  # what the trainer aims at
RECIPE = {
    "task": "distill",
    "student": {"arch": "vit_small", "patch": 16, "cpe_max": 512},
    "teachers": {
        "lite0": {"encoder": "lite0"},
        "vit": {"encoder": "timm", "weights": "random", "options": {"model": "vit_small_patch16_224"}},
    },
    "streams": {"low": {"size": 224, "batch": 4}},
    "statistics": {"batches": 2},
    "output": {"save": 0, "log": 1000, "heldout": 0, "pictures": 0},
    "precision": "fp32",
    "teacher_precision": "fp32",
    "threads": 1,
}


class Measured(Exception):
    """Enough steps were timed: the run need not go on."""


class Clock:
    """Seconds by part since the last `take`; a part that another one calls does not count for the caller."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._mark = 0.0

    def begin(self, part: str) -> None:
        self._charge()
        self._open.append(part)

    def end(self) -> None:
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._mark
        self._mark = now

    def take(self) -> dict[str, float]:
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken

    def watch(self, module: nn.Module, part: str) -> None:
        """Count every forward pass of a module."""
        module.register_forward_pre_hook(lambda *_: self.begin(part))
        module.register_forward_hook(lambda *_: self.end())

    @contextmanager
    def counting(self, owner: object, name: str, part: str) -> Iterator[None]:
        """Count every call of a function that `owner` knows by `name`."""
        function = getattr(owner, name)

        def timed(*arguments: object, **options: object) -> object:
            self.begin(part)
            try:
                return function(*arguments, **options)
            finally:
                self.end()

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, function)

    @contextmanager
    def counting_optimisers(self) -> Iterator[None]:
        """Count every step of an optimiser, whoever asks for it."""
        from torch.optim import optimizer

        hooks = [
            optimizer.register_optimizer_step_pre_hook(lambda *_: self.begin("optimiser")),
            optimizer.register_optimizer_step_post_hook(lambda *_: self.end()),
        ]
        yield
        for hook in hooks:
            hook.remove()


class Pairs:
    """A step of the trainer and a bare pass, in turn; the parts of each in seconds."""

    def __init__(self, bare: Callable[[], None], clock: Clock, steps: int):
        self.bare, self.clock, self.left = bare, clock, steps + WARM
        self.trainer: list[dict[str, float]] = []
        self.alone: list[dict[str, float]] = []
        self._ended = 0.0

    def step(self, one_step: Callable) -> tuple:
        """The trainer's step in between; called in place of it."""
        begun = time.perf_counter()
        if self.trainer:  # the journal and the console follow a step, and belong to it
            self._add(self.trainer[-1], "rest", begun - self._ended)
        if not self.left:
            raise Measured
        self.clock.take()
        answer = one_step()
        total = time.perf_counter() - begun
        parts = self.clock.take() | {"wait": answer[0]["wait"]}
        self.trainer.append({"total": total, **parts, "rest": total - sum(parts.values())})
        begun = time.perf_counter()
        self.bare()
        total, parts = time.perf_counter() - begun, self.clock.take()
        self.alone.append({"total": total, **parts, "rest": total - sum(parts.values())})
        self.left -= 1
        self._ended = time.perf_counter()
        return answer

    @staticmethod
    def _add(row: dict[str, float], part: str, seconds: float) -> None:
        row[part] += seconds
        row["total"] += seconds


def recipe_of(folder: Path, overrides: list[str], steps: int) -> Recipe:
    """The benchmark's recipe on shards in `folder`, changed as the command line says."""
    document = copy.deepcopy(RECIPE) | {"run": str(folder / "run"), "stages": [{"steps": steps + WARM + 1}]}
    document["streams"]["low"]["shards"] = make_shards(folder, 384, PICTURES)
    document["statistics"]["cache"] = str(folder / "statistics")
    path = folder / "step.yaml"
    path.write_text(yaml.safe_dump(document))
    return load_recipe(path, overrides)


def bare_pass(recipe: Recipe, objective: loop.Objective, clock: Clock) -> Callable[[], None]:
    """One forward of every teacher and both ways through a copy of the student, on pictures that are there already."""
    student = copy.deepcopy(objective.model).train()
    clock.watch(student, "student")
    rows = []
    for config in recipe.streams.values():
        size = config.size[0]
        grid = tuple(side // recipe.student.patch for side in size)
        seen = {name: teacher.size(grid, config.sharpen) for name, teacher in objective.teachers.items()}
        images = {size: torch.rand(config.batch, 3, *size) for size in {size, *seen.values()}}
        rows.append(
            (images[size], [(objective.teachers[n].encoder(config.sharpen), images[s]) for n, s in seen.items()])
        )

    def run() -> None:
        for images, teachers in rows:
            with torch.no_grad():
                for encoder, given in teachers:
                    encoder(given)
            answers = student(images)
            # The plainest loss whose gradient reaches everything.
            parts = [part.mean() for answer in answers.values() for part in answer if part is not None]
            sum(parts).backward()
        student.zero_grad()

    return run


def measure(recipe: Recipe, steps: int) -> Pairs:
    """Run the trainer's loop over `recipe`, a bare pass after every step."""
    clock = Clock()
    with ExitStack() as stack:
        world = join_world(recipe.threads)
        stack.callback(leave_world)
        objective = build_objective(recipe, world)
        pairs = Pairs(bare_pass(recipe, objective, clock), clock, steps)
        for name, teacher in objective.teachers.items():
            for encoder in {teacher.base, teacher.sharp} - {None}:
                clock.watch(encoder, f"teacher {name}")
        clock.watch(objective.model, "student")

        class Timed(loop.Training):
            def one_step(self, *arguments):
                return pairs.step(lambda: super(Timed, self).one_step(*arguments))

        stack.callback(setattr, loop, "Training", loop.Training)
        loop.Training = Timed
        stack.enter_context(clock.counting_optimisers())
        for owner, function, part in (
            (torch.Tensor, "backward", "backward"),
            (objective, "losses", "losses"),
            (loop, "backward", "engine"),
            (loop, "optimizer_step", "engine"),
        ):
            stack.enter_context(clock.counting(owner, function, part))
        try:
            recipe.folder.mkdir(parents=True)
            loop.train(recipe, objective, world, Stopper())
        except Measured:
            pass
    return pairs


def rows_of(pairs: Pairs, recipe: Recipe) -> list[dict]:
    """What `--json` prints: the bare pass and the trainer's step; times in milliseconds, medians over steps."""
    size = recipe.streams["low"].size[0]
    facts = {"channels": 3, "height": size[0], "width": size[1], "batch": recipe.streams["low"].batch, "device": "cpu"}
    rows = []
    for variant, steps in (("bare", pairs.alone[WARM:]), ("default", pairs.trainer[WARM:])):
        parts = {part: median(1000 * step.get(part, 0.0) for step in steps) for part in steps[0]}
        total = parts.pop("total")
        rounded = {part: round(ms, 2) for part, ms in parts.items()}
        rows.append({"variant": variant, **facts, "steps": len(steps), "ms": round(total, 2), "parts_ms": rounded})
    ratios = sorted(a["total"] / b["total"] for a, b in zip(pairs.trainer[WARM:], pairs.alone[WARM:]))
    waited, total = (sum(step[part] for step in pairs.trainer[WARM:]) for part in ("wait", "total"))
    rows[1] |= {
        "ratio": round(median(ratios), 4), "ratio_range": [round(ratios[0], 4), round(ratios[-1], 4)],
        "wait": round(waited / total, 4), "threads": torch.get_num_threads(),
    }  # fmt: skip
    return rows


def table(rows: list[dict]) -> str:
    """The same, to be read."""
    bare, ours = rows
    lines = [f"{'ms a step':<20}{'bare':>10}{'trainer':>10}{'more':>10}"]
    extra = {"losses": "targets and losses", "engine": "engine, clipping", "optimiser": "optimiser", "wait": "loader",
             "rest": "everything else"}  # fmt: skip
    for part in [*sorted(ours["parts_ms"].keys() - extra.keys()), *extra]:
        pair = [row["parts_ms"].get(part, 0.0) for row in rows]
        lines.append(f"{extra.get(part, part):<20}{pair[0]:>10.1f}{pair[1]:>10.1f}{pair[1] - pair[0]:>+10.1f}")
    lines.append(f"{'all':<20}{bare['ms']:>10.1f}{ours['ms']:>10.1f}{ours['ms'] - bare['ms']:>+10.1f}")
    low, high = ours["ratio_range"]
    lines.append(f"\n{ours['ratio']:.3f} × the bare pass (median of {ours['steps']} pairs, {low:.3f} to {high:.3f}; "
                 f"aim ≤ {MOST_RATIO}), {100 * ours['wait']:.1f} % of a step waits for the loader "
                 f"(aim ≤ {100 * MOST_WAIT:.0f} %)")  # fmt: skip
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--steps", type=int, default=10, help="that count")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    options = parser.parse_args(arguments)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the figures are a CPU's
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(Path(folder), options.overrides, options.steps)
        with redirect_stdout(sys.stderr):  # what the trainer says
            rows = rows_of(measure(recipe, options.steps), recipe)
    print("\n".join(map(json.dumps, rows)) if options.json else table(rows))


if __name__ == "__main__":
    main()
