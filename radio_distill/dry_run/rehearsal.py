"""A recipe → one optimizer step of every stage, in the code and at the sizes of a run, without weights, data or memory.

Real are the networks (their true sizes), the objective, the loop's step, the optimizer and the average. Stand-ins are
the tensors (shapes without values), the loader (batches of the right sizes), DeepSpeed's engine (plain autocast,
backward, clipping and step), and the held-out pictures. So a rehearsal finds what does not fit together: sizes, widths,
dtypes, heads, files of sharpeners; it cannot find what depends on values, devices or several ranks.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from featsharp import adapter as adapters
from featsharp import sharpener
from radio_distill import comparing, distill
from radio_distill.dry_run.checks import find_missing, find_mistakes, refusal
from radio_distill.dry_run.fake import Meter, bytes_of, fake_tensors
from radio_distill.dry_run.memory import Memory
from radio_distill.dry_run.networks import as_fake, planned_sharpener
from radio_distill.dry_run.plain_engine import PlainEngine
from radio_distill.dry_run.plan import make_plan
from radio_distill.engine import World, autocast
from radio_distill.loop import Training
from radio_distill.objectives import Objective, build_objective
from radio_distill.optimisers import build_optimizer, freeze
from radio_distill.recipe import Recipe
from radio_distill.targets import Teacher
from radio_distill.views import Batch
from teachers.errors import UserError
from teachers.features import Size
from teachers.radio_encoder import RadioEncoder

AGREE = 0.1  # plan and rehearsal may differ by this share
SMALL = 64 * 2**20  # bytes: less does not decide whether a run fits
SEARCHED = 10_000  # batches among which one of every size is looked for


class NeverStops:
    """In place of the signals: nobody stops a rehearsal."""

    reason = ""

    def asked(self) -> bool:
        return False


class Rehearsal(Training):
    """A run on one rank whose batches come from nowhere, and which begins at its beginning."""

    def find_checkpoint(self) -> tuple[Path | None, list[str]]:
        return None, []

    def start_engine(self, groups: list[dict], precision: str) -> PlainEngine:
        device, optim = self.world.device, self.recipe.optim
        optimizer = build_optimizer(optim, groups, torch.device("meta"))  # where none is fused
        return PlainEngine(self.objective.model, optimizer, optim.clip, autocast(precision, device))

    def batch(self, stream: str, index: int, images: int | None = None) -> Batch:
        """Batch number `index` of a stream: the sizes that the loader would be asked for."""
        n = images or self.recipe.streams[stream].batch
        views = {size: torch.empty(n, 3, *size, dtype=torch.uint8) for size in self.objective.sizes(stream, index)}
        return Batch(views, [str(i) for i in range(n)], stream, index, crops=[str(i) for i in range(n)])

    def rehearse_statistics(self, stage: int) -> None:
        """Before a stage: fit the teachers' statistics, on one batch of its first stream."""
        first = next(iter(self.recipe.streams_of(stage)))
        self.objective.begin_stage(stage, lambda: [self.batch(first, 0)], "rehearsal")

    def fill_optimizer(self) -> None:
        """Make what the optimizer keeps of every parameter, which it else makes in its first step."""
        optimizer = self.engine.optimizer
        freeze(optimizer.param_groups, None)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def rehearse_heldout(self) -> None:
        """The pass over held-out pictures, on one batch a stream."""
        if self.recipe.heldout:
            judge = getattr(self.objective, "judge", self.objective.evaluate)  # a sharpener's sums leave torch
            judge(self.batch(name, 0, self.recipe.heldout.batch) for name in self.recipe.streams)


@dataclass
class Step:
    """One optimizer step that was rehearsed."""

    stage: int
    inside: int  # of its stage, from 0
    frozen: bool
    sizes: dict[str, Size]  # of the student, by stream
    windows: dict[str, int | None]
    flops: dict[str, float]  # by network
    memory: Memory
    reads: int
    seconds: float
    shapes: dict[str, str] = field(default_factory=dict)  # of what is compared, by stream and teacher

    @property
    def all_flops(self) -> float:
        return sum(self.flops.values())


def rehearse(recipe: Recipe, teachers: dict[str, Teacher], say: Callable[[Step], None], export: Path) -> int:
    """Step through every stage, then write the export and read it back; returns the bytes of its weights.

    Args:
        teachers: on meta, as `find_mistakes` gives them.
        say: hears of each step.
        export: a folder for what users would load. Its files have the true names, headers and lengths, but their
            tensors are a hole that takes no room on the disk.
    """
    recipe = _undisturbed(recipe)
    world = World(0, 0, 1, torch.device("cpu"))
    with fake_tensors() as meter:
        fakes = {name: as_fake(teacher, world.device) for name, teacher in teachers.items()}
        flops = _count_teachers(fakes, meter)
        objective = build_objective(recipe, world, lambda name, config, device: fakes[name])
        training = Rehearsal(recipe, objective, world, loud=False)
        with _where("held-out pictures"):
            training.rehearse_heldout()
        training.fill_optimizer()
        begun = 0
        for stage in range(len(recipe.stages)):
            training.step = begun
            with _where(f"stage {stage}: statistics"):
                training.rehearse_statistics(stage)
            for inside, indices in _steps(recipe, objective, stage):
                training.step = begun + inside
                if inside:
                    objective.after_step(training.step)  # what the steps between would have ended, ends here
                flops.clear()
                with _where(f"stage {stage}, step {inside}"):
                    say(_one_step(training, indices, flops, meter))
            begun += recipe.stages[stage].steps
        with _where("the export"):
            objective.artefact(export)
            _read_back(recipe, fakes, export)
    return sum(file.stat().st_size for file in export.glob("*.safetensors"))


def write_hollow_export(recipe: Recipe, teachers: dict[str, Teacher], export: Path) -> None:
    """What a run of this recipe would export, without a step: true names, headers and lengths, and no numbers."""
    recipe, world = _undisturbed(recipe), World(0, 0, 1, torch.device("cpu"))
    with fake_tensors():
        fakes = {name: as_fake(teacher, world.device) for name, teacher in teachers.items()}
        build_objective(recipe, world, lambda name, config, device: fakes[name]).artefact(export)


def _read_back(recipe: Recipe, teachers: dict[str, Teacher], export: Path) -> None:
    """The export as those who use it read it: every tensor must be there, and of the right shape."""
    if recipe.task == "sharpen":
        [teacher] = teachers.values()
        adapters.load(export, teacher.base)
    else:
        RadioEncoder.load(export)


def _undisturbed(recipe: Recipe) -> Recipe:
    """The recipe without what would read or write files."""
    statistics = recipe.statistics.model_copy(update={"cache": None})
    cache = recipe.cache.model_copy(update={"folder": None})
    student = recipe.student and recipe.student.model_copy(update={"init": None})
    changes = {"statistics": statistics, "cache": cache, "student": student, "compile": False}
    return recipe.model_copy(update=changes)


def _steps(recipe: Recipe, objective: Objective, stage: int) -> Iterator[tuple[int, dict[str, int]]]:
    """Which steps of a stage are rehearsed, and which batch each stream gives in it.

    One in which everything is on, with the largest sizes. With the smallest: the first, where the trunk is frozen in
    it, else another in which everything is on, if a stream begins in this stage.
    """
    config, streams = recipe.stages[stage], recipe.streams_of(stage)
    begun = {name for earlier in range(stage) for name in recipe.streams_of(earlier)}
    before = sum(one.steps for one in recipe.stages[:stage])
    mesa = max(0, recipe.loss.mesa.start - before) if recipe.loss.mesa.weight else 0
    all_on = min(max(config.freeze_trunk, mesa), config.steps - 1)
    ordered = {name: sorted(stream.size, key=math.prod) for name, stream in streams.items()}
    small, large = (
        {name: _index_of(recipe, objective, name, sizes[place]) for name, sizes in ordered.items()} for place in (0, -1)
    )
    if config.freeze_trunk:
        yield 0, small
    yield all_on, large
    if not config.freeze_trunk and any(small[name] != large[name] for name in streams.keys() - begun):
        yield all_on, small


def _index_of(recipe: Recipe, objective: Objective, stream: str, size: Size) -> int:
    """A batch of a stream that has this size."""
    if recipe.student is None or len(recipe.streams[stream].size) == 1:
        return 0
    return next(index for index in range(SEARCHED) if objective.sights.student_size(stream, index) == size)


def _one_step(training: Rehearsal, indices: dict[str, int], flops: dict[str, float], meter: Meter) -> Step:
    recipe, objective, inside = training.recipe, training.objective, training.recipe.stage_at(training.step)
    frozen = recipe.trunk_frozen(training.step)
    begun, computed, reads = time.perf_counter(), meter.flops, meter.reads
    meter.peak = meter.held
    streams = {name: map(partial(training.batch, name), repeat(index)) for name, index in indices.items()}
    with _recorded(objective) as shapes:
        training.one_step(streams, NeverStops())
    flops["student" if recipe.student else "sharpener"] = meter.flops - computed - sum(flops.values())
    sizes, windows = dict.fromkeys(indices, objective.view_size) if recipe.sharpener else {}, {}
    if recipe.student:
        sights = objective.sights
        sizes = {name: sights.student_size(name, index) for name, index in indices.items()}
        windows = {name: sights.attention_window(training.batch(name, index)) for name, index in indices.items()}
    return Step(
        *inside, frozen, sizes, windows, dict(flops), _memory(training, meter), meter.reads - reads,
        time.perf_counter() - begun, shapes,
    )  # fmt: skip


@contextmanager
def _recorded(objective: Objective) -> Iterator[dict[str, str]]:
    """Inside, the shapes of what the objective compares are noted down."""
    shapes: dict[str, str] = {}
    if hasattr(objective, "show"):  # a sharpener's

        def show(*args: Any, **options: Any) -> Any:
            sight = type(objective).show(objective, *args, **options)
            tiles = sight.tiles if isinstance(sight.tiles, tuple) else (sight.tiles,)
            parts = {"image": [sight.image], "map": [sight.low], "tiles": tiles, "targets": [sight.targets]}
            shapes["views"] = f"{objective.encoder.name}: " + ", ".join(
                f"{name} {_shape(one)}" for name, ones in parts.items() for one in ones if one is not None
            )
            return sight

        with mock.patch.object(objective, "show", show):
            yield shapes
        return

    def compare(teacher: Teacher, said: Any, wanted: Any, *rest: Any) -> Any:
        summary = f", summary {_shape(said.summary)}" if teacher.has_summary_loss else ""
        key = f"{teacher.name} {_shape(wanted.spatial)}"
        shapes[key] = f"{teacher.name}: target {_shape(wanted.spatial)}, prediction {_shape(said.features)}{summary}"
        return comparing.compare(teacher, said, wanted, *rest)

    with mock.patch.object(distill, "compare", compare):
        yield shapes


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape))


def _memory(training: Rehearsal, meter: Meter) -> Memory:
    """Of the step that has just been taken."""
    objective = training.objective
    parameters = [p for group in training.engine.optimizer.param_groups for p in group["params"]]
    state = training.engine.optimizer.state.values()
    optimizer = sum(x.numel() * x.element_size() for one in state for x in one.values() if isinstance(x, torch.Tensor))
    ema = getattr(objective, "ema", None)
    known = Memory(
        frozen=bytes_of(*_teacher_modules(objective)),
        trained=bytes_of(objective.model),
        optimizer=optimizer,
        average=bytes_of(ema.module) if ema else 0,
        gradients=sum(p.numel() * p.element_size() for p in parameters),
        working=0,
    )
    return replace(known, working=meter.peak - known.total)


def _teacher_modules(objective: Objective) -> list[torch.nn.Module]:
    if hasattr(objective, "teachers"):
        return [teacher.sharp or teacher.base for teacher in objective.teachers.values()]
    return [objective.encoder]


def _count_teachers(teachers: dict[str, Teacher], meter: Meter) -> dict[str, float]:
    """A dict that fills with the operations of each teacher, its sharpener's included, as they run."""
    flops: dict[str, float] = {}
    for name, teacher in teachers.items():
        begun: list[float] = []  # one for every call that is not over: a sharpener calls its teacher

        def start(*_: Any, begun: list[float]) -> None:
            begun.append(meter.flops)

        def done(*_: Any, name: str, begun: list[float]) -> None:
            since = begun.pop()
            if not begun:
                flops[name] = flops.get(name, 0.0) + meter.flops - since

        for module in filter(None, (teacher.base, teacher.sharp)):
            module.register_forward_pre_hook(partial(start, begun=begun))
            module.register_forward_hook(partial(done, name=name, begun=begun))
    return flops


class _where:
    """Turns what fails inside into one sentence that says where."""

    def __init__(self, what: str):
        self.what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, UserError):
            raise UserError(f"{self.what}: {error.what}", expected=error.expected, todo=error.todo) from error
        if isinstance(error, (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError)):
            text = " ".join(str(error).split())[:300]
            raise UserError(
                f"{self.what} cannot be taken: {type(error).__name__}: {text}",
                expected="a recipe whose networks fit together",
                todo="this is a fault of radio-distill if the recipe is right: please report it with this text",
            ) from error


# On the console ---------------------------------------------------------------------------------------------------


@dataclass
class Findings:
    """What a rehearsal found beside the plan."""

    steps: list[tuple[Step, float | None]] = field(default_factory=list)  # and the plan's operations
    memory: dict[int, tuple[Memory, Memory]] = field(default_factory=dict)  # by stage: rehearsed, planned
    export: int = 0  # bytes

    @property
    def disagreements(self) -> list[str]:
        """Where plan and rehearsal are further apart than they may be."""
        out = []
        for step, planned in self.steps:
            if planned is not None and abs(planned / step.all_flops - 1) > AGREE:
                out.append(f"stage {step.stage}: {step.all_flops:.3g} FLOP a step, planned {planned:.3g}")
        for stage, (rehearsed, planned) in self.memory.items():
            theirs = planned.rows()
            for name, value in {**rehearsed.rows(), "memory": rehearsed.total}.items():
                other = planned.total if name == "memory" else theirs.get(name, 0.0)
                if abs(other - value) > max(AGREE * value, SMALL):
                    out.append(f"stage {stage}: {name} {value / 2**30:.3f} GiB, planned {other / 2**30:.3f}")
        return out


def compare_with_plan(recipe: Recipe, source: str, say: Callable[[str], None]) -> Findings:
    """Rehearse a recipe beside its plan; `say` hears of every step and stage. Mistakes raise `UserError`."""
    mistakes, teachers = find_mistakes(recipe)
    if mistakes:
        raise refusal(source, mistakes)
    say(f"rehearsal of {source}: a step of every stage at true size, on tensors without values")
    say("\n".join(f"  {line}" for line in _stand_ins(recipe)))
    with _where("a step of the plan"):
        plan = make_plan(recipe, teachers)
    found = Findings()

    def note(step: Step) -> None:
        planned = None if step.frozen else plan.flops_at(step.sizes, step.windows)
        found.steps.append((step, planned))
        say("\n".join(_step_lines(step, planned)))
        most = found.memory.get(step.stage)
        always_frozen = recipe.stages[step.stage].freeze_trunk >= recipe.stages[step.stage].steps
        if (not step.frozen or always_frozen) and (most is None or step.memory.working > most[0].working):
            found.memory[step.stage] = step.memory, plan.memory(step.stage)

    with tempfile.TemporaryDirectory() as folder:
        found.export = rehearse(recipe, teachers, note, Path(folder) / "export")
    for stage, (rehearsed, planned) in found.memory.items():
        say("\n".join(_memory_lines(stage, rehearsed, planned)))
    return found


def print_rehearsal(recipe: Recipe, source: str) -> int:
    """`rehearse=true`: every stage's step on the console, beside the plan; exit code 0. Mistakes raise `UserError`."""
    begun = time.perf_counter()
    found = compare_with_plan(recipe, source, lambda text: print(text, flush=True))
    print(f"export: {found.export / 2**30:.2f} GiB, written and read back")
    missing, spent = find_missing(recipe), time.perf_counter() - begun
    lacks = f"; a start lacks {len(missing)} things (dry_run=true lists them)" if missing else ""
    print(f"rehearsed in {spent:.0f} s: every stage can take its step{lacks}")
    return 0


def _stand_ins(recipe: Recipe) -> Iterator[str]:
    """What is not the real thing in a rehearsal of this recipe."""
    yield "stand-ins: batches of the right sizes for the loader; one batch for statistics and held-out pictures;"
    yield "plain autocast, backward, clipping and step for DeepSpeed, on one rank; a GPU's attention and JBU forms;"
    yield "of several sizes the largest and the smallest"
    for name, config in recipe.teachers.items():
        settings, path = planned_sharpener(config) if config.sharpen != "none" else (None, None)
        if path is not None:
            yield f"sharpener of {name}: not trained yet, as {path} will make it"
        elif settings is not None and config.sharpen not in sharpener.UNTRAINED and sharpener.missing(config.sharpen):
            yield f"sharpener of {name}: not trained yet and no recipe for it, {settings.upsampler} {settings.factor}×"
    if recipe.student and recipe.student.init:
        yield f"student.init={recipe.student.init}: checked, not read"
    if recipe.cache.folder:
        yield "the cache of teachers' features is off"


def _step_lines(step: Step, planned: float | None) -> Iterator[str]:
    sizes = ", ".join(f"{name} {h}×{w}" for name, (h, w) in step.sizes.items())
    windows = ", ".join(f"{name} windows of {n}" for name, n in step.windows.items() if n)
    what = " (trunk frozen)" if step.frozen else ""
    yield f"stage {step.stage}, step {step.inside}{what}: {', '.join(filter(None, (sizes, windows)))}"
    if not step.frozen:
        yield from (f"  {text}" for text in step.shapes.values())
    parts = ", ".join(f"{name} {value / 1e12:.3g}" for name, value in step.flops.items())
    beside = "" if planned is None else f"; plan {_beside(step.all_flops, planned, 1e12)}"
    yield f"  {step.all_flops / 1e12:.4g} TFLOP{beside}; {step.reads} values read back"
    yield f"  of it {parts}"


def _memory_lines(stage: int, rehearsed: Memory, planned: Memory) -> Iterator[str]:
    beside = _beside(rehearsed.total, planned.total, 2**30)
    yield f"memory of stage {stage}, GiB a device with one rank: {rehearsed.total / 2**30:.2f}; plan {beside}"
    theirs = planned.rows()
    for name, value in rehearsed.rows().items():
        yield f"  {name:<34} {value / 2**30:8.3f}   plan {_beside(value, theirs.get(name, 0.0), 2**30)}"


def _beside(rehearsed: float, planned: float, unit: float) -> str:
    """The plan's figure, and by how much it is off."""
    off = planned / rehearsed - 1 if rehearsed else 0.0
    return f"{planned / unit:.4g} ({off:+.1%})"
