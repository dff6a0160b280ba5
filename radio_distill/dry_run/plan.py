"""A recipe → its plan: what will be run, what it costs, how long it takes, and what is missing, without weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from radio_distill.balance import Uncertainty
from radio_distill.comparing import terms_of
from radio_distill.console import duration
from radio_distill.dry_run.checks import find_missing, find_mistakes, refusal
from radio_distill.dry_run.cost import (
    BYTES,
    Cost,
    StudentCosts,
    mean_window_flops,
    measured_speed,
    sharpener_costs,
    teacher_costs,
    window_flops,
)
from radio_distill.dry_run.fake import bytes_of, fake_tensors
from radio_distill.dry_run.memory import Memory, Weights, stage_memory
from radio_distill.dry_run.networks import as_fake
from radio_distill.engine import autocast, choose_precision
from radio_distill.objectives import build_sharpen_objective, teachers_precision
from radio_distill.recipe import Recipe
from radio_distill.sights import Sights
from radio_distill.student import student_spec
from radio_distill.targets import Teacher
from teachers.features import Size
from teachers.radio import RadioModel
from teachers.radio_spec import RadioSpec

if TYPE_CHECKING:
    from rich.table import Table

UTILISATION = 0.4  # share of a machine's matrix-product speed that training usually reaches
A100 = 312e12  # FLOP/s in bf16, NVIDIA's data sheet


@dataclass
class Plan:
    """All that `dry_run=true` prints."""

    recipe: Recipe
    parameters: dict[str, int]  # by network
    weights: Weights
    costs: list[Cost] = field(default_factory=list)
    spec: RadioSpec | None = None  # of the student

    def flops_at(self, sizes: Mapping[str, Size], windows: Mapping[str, int | None]) -> float:
        """Of one step on one rank whose student sees these sizes, and these windows of attention, by stream."""
        total = 0.0
        for cost in self.costs:
            if sizes.get(cost.stream) != cost.student_size:
                continue
            total += cost.flops
            if cost.name == "student":
                total -= mean_window_flops(self.recipe, self.spec, cost.grid, cost.batch)
                total += window_flops(self.spec, windows[cost.stream], cost.grid, cost.batch)
        return total * self.recipe.optim.accumulate

    def flops_a_step(self, stage: int) -> float:
        """On one rank, of the streams of a stage."""
        taken = self.recipe.streams_of(stage)
        return self.recipe.optim.accumulate * sum(c.flops * c.share for c in self.costs if c.stream in taken)

    @property
    def flops(self) -> float:
        """On one rank, of all steps."""
        return sum(self.flops_a_step(number) * stage.steps for number, stage in enumerate(self.recipe.stages))

    def images(self, stream: str) -> int:
        """That one rank takes from a stream in all steps."""
        return self.batches(stream) * self.recipe.streams[stream].batch

    def batches(self, stream: str) -> int:
        """Micro-batches that one rank takes from a stream in all steps."""
        recipe = self.recipe
        steps = sum(stage.steps for n, stage in enumerate(recipe.stages) if stream in recipe.streams_of(n))
        return steps * recipe.optim.accumulate

    def memory(self, stage: int, ranks: int = 1) -> Memory:
        """On each of `ranks` devices."""
        return stage_memory(self.recipe, self.weights, self.costs, stage, ranks)


def make_plan(recipe: Recipe, teachers: Mapping[str, Teacher]) -> Plan:
    """Run every network on its own without memory, and count.

    Args:
        teachers: on meta, as `find_mistakes` gives them.
    """
    device = torch.device("cpu")  # as which fake tensors pass
    precise = autocast(choose_precision(recipe.precision, device)[0], device)
    frozen = autocast(teachers_precision(recipe, device), device)
    with fake_tensors() as meter:
        teachers = {name: as_fake(teacher, device) for name, teacher in teachers.items()}
        parameters = {name: count(teacher.base) for name, teacher in teachers.items()}
        weights = sum(bytes_of(teacher.sharp or teacher.base) for teacher in teachers.values())
        spec = None
        if recipe.task == "sharpen":
            [teacher] = teachers.values()
            objective = build_sharpen_objective(recipe, teacher.base, device, frozen)
            trained, costs = objective.model, sharpener_costs(objective, recipe, precise, meter)
        else:
            sights = Sights(recipe, teachers, device, frozen, None)
            spec = student_spec(recipe, {name: teacher.base.dims for name, teacher in teachers.items()})
            trained, costs = RadioModel(spec), list(_student_plan(StudentCosts(recipe, spec, sights, precise, meter)))
            parameters["student"] = count(trained)
            if recipe.loss.balance == "uncertainty":
                trained.balance = Uncertainty(trained.summary_width, terms_of(teachers))
        sizes = [BYTES * parameter.numel() for parameter in trained.parameters()]
        return Plan(recipe, parameters, Weights(weights, bytes_of(trained), sum(sizes), max(sizes)), costs, spec)


def _student_plan(students: StudentCosts) -> Iterator[Cost]:
    recipe, sights = students.recipe, students.sights
    for stream, config in recipe.streams.items():
        rows = {name: teacher_costs(sights, name, stream, students.meter) for name in recipe.teachers_of(stream)}
        grids = {size: {name: row[size].grid for name, row in rows.items()} for size in config.size}
        yield from students.costs(stream, grids)
        yield from (row[size] for size in config.size for row in rows.values())


def count(module: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def print_plan(recipe: Recipe, source: str) -> int:
    """`dry_run=true`: the plan on the console; exit code 0, whatever is missing. Mistakes raise `UserError`."""
    from rich.console import Console

    mistakes, teachers = find_mistakes(recipe)
    if mistakes:
        raise refusal(source, mistakes)
    plan, speed, missing = make_plan(recipe, teachers), measured_speed(), find_missing(recipe)
    out = Console(highlight=False, soft_wrap=True)
    out.print(f"plan of {source} (task: {recipe.task}, run: {recipe.run}); nothing is started\n", markup=False)
    sizes = ", ".join(f"{name} {n / 1e6:.1f} M" for name, n in plan.parameters.items())
    out.print(f"parameters   {sizes}")
    images = ", ".join(f"{name} {plan.images(name):,}" for name in recipe.streams)
    out.print(f"steps        {recipe.steps} in {len(recipe.stages)} stage(s); images a rank: {images}")
    out.print(_table(plan))
    if any(len(stream.size) > 1 for stream in recipe.streams.values()):
        out.print("  (one size is drawn a batch: the share of each is weighted by how often)")
    for number in range(len(recipe.stages)):
        out.print(_memory_line(plan, number))
    here, there = plan.flops / (speed * UTILISATION), plan.flops / (A100 * UTILISATION)
    a_step = ", ".join(f"{plan.flops_a_step(number) / 1e12:.3f}" for number in range(len(recipe.stages)))
    out.print(
        f"time         {a_step} TFLOP a step, {plan.flops / 1e18:.3g} EFLOP in all: about {duration(here)} "
        f"here ({UTILISATION:.0%} of {speed / 1e9:.0f} GFLOP/s, measured now), {duration(there)} on A100s, one a rank"
    )
    if missing:
        out.print(f"\nmissing: {len(missing)} (a real start would stop here)", style="bold")
        for text in missing:
            out.print(f"- {text}", markup=False)
    else:
        out.print("\nnothing is missing: start it without dry_run=true")
    return 0


def _table(plan: Plan) -> Table:
    from rich.table import Table

    table = Table("network", "stream", "images", "pixels", "grid", "GFLOP an image", "share", "what", box=None)
    everything = sum(cost.flops * cost.share * plan.batches(cost.stream) for cost in plan.costs)
    rows: dict[tuple, list[Cost]] = {}  # a fixed-size teacher costs the same beside every student size: one row
    for cost in plan.costs:
        rows.setdefault((cost.name, cost.stream, cost.size), []).append(cost)
    for (name, stream, size), costs in rows.items():
        flops = sum(cost.flops * cost.share for cost in costs)
        table.add_row(
            name,
            stream,
            str(costs[0].batch),
            "×".join(map(str, size)),
            "×".join(map(str, costs[0].grid)),
            f"{costs[0].flops / costs[0].batch / 1e9:.2f}",
            f"{flops * plan.batches(stream) / everything:.0%}",
            costs[0].passes,
        )
    return table


def _memory_line(plan: Plan, stage: int) -> str:
    ranks = torch.cuda.device_count() or 1
    memory = plan.memory(stage, ranks)
    parts = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in memory.rows().items())
    where = f"stage {stage}: " if len(plan.recipe.stages) > 1 else ""
    return f"memory       {where}{memory.total / 2**30:.1f} GiB a device with {ranks} rank(s): {parts}"
