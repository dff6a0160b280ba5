"""A recipe → its plan: what will be run, what it costs, how long it takes, and what is missing, without weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from radio_distill import tars
from radio_distill.console import duration
from radio_distill.dry_run.cost import Cost, count, measured_speed, memory, sharpener_costs, student_costs
from radio_distill.recipe import Recipe
from radio_distill.student import student_spec
from radio_distill.targets import Teacher, load_teacher
from teachers import catalogue
from teachers.errors import UserError
from teachers.radio import RadioModel

UTILISATION = 0.4  # share of a machine's matrix-product speed that training usually reaches
A100 = 312e12  # FLOP/s in bf16, NVIDIA's data sheet


@dataclass
class Plan:
    """All that `dry_run=true` prints."""

    recipe: Recipe
    parameters: dict[str, int]
    costs: list[Cost] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def flops_a_step(self, stage: int) -> float:
        """On one rank, of the streams of a stage."""
        taken = self.recipe.streams_of(stage)
        costs = [cost.flops * taken[cost.stream].batch for cost in self.costs if cost.stream in taken]
        return sum(costs) * self.recipe.optim.accumulate

    @property
    def flops(self) -> float:
        """On one rank, of all steps."""
        return sum(self.flops_a_step(number) * stage.steps for number, stage in enumerate(self.recipe.stages))

    def images(self, stream: str) -> int:
        """That one rank takes from a stream in all steps."""
        recipe = self.recipe
        steps = sum(stage.steps for n, stage in enumerate(recipe.stages) if stream in recipe.streams_of(n))
        return steps * recipe.streams[stream].batch * recipe.optim.accumulate


def find_missing(recipe: Recipe) -> list[str]:
    """What a real start would lack, each with the command that makes it or the place to get it."""
    found: list[str] = []
    for name, teacher in recipe.teachers.items():
        lacking = catalogue.missing(teacher.encoder, teacher.weights, **teacher.options)
        found += _indent(f"teachers.{name}.weights", lacking)
        if teacher.sharpen != "none":
            from featsharp import sharpener

            found += _indent(f"teachers.{name}.sharpen", sharpener.missing(teacher.sharpen))
    if recipe.student and recipe.student.init is not None:
        from teachers import radio_init

        found += _indent("student.init", radio_init.missing(recipe.student.init))
    wanted = {f"streams.{name}.shards": stream.shards for name, stream in recipe.streams.items()}
    if recipe.heldout:
        wanted["heldout.shards"] = recipe.heldout.shards
    lacking: dict[str, list[str]] = {}  # streams often share their shards: one message for all
    for key, shards in wanted.items():
        mixed = isinstance(shards, dict)
        sources = {f"{key}.{name}.shards": mix.shards for name, mix in shards.items()} if mixed else {key: shards}
        for place, text in sources.items():
            try:
                tars.resolve(text, place)
            except UserError as error:
                lacking.setdefault(str(error).removeprefix(f"{place}: "), []).append(place)
    return found + [f"{', '.join(places)}: {text}" for text, places in lacking.items()]


def _indent(key: str, text: str | None) -> list[str]:
    return [f"{key}: {text}"] if text else []


def check_inputs(recipe: Recipe) -> None:
    """Raise one `UserError` that names everything a start lacks."""
    missing = find_missing(recipe)
    if missing:
        head = f"cannot start {recipe.run}: {len(missing)} missing"
        raise UserError("\n".join([head, *missing, "Nothing was started."]))


def make_plan(recipe: Recipe) -> Plan:
    """Build everything on the meta device and count."""
    teachers = {name: _meta_teacher(name, config) for name, config in recipe.teachers.items()}
    plan = Plan(recipe, {name: count(teacher.base) for name, teacher in teachers.items()}, missing=find_missing(recipe))
    student = None
    if recipe.student:
        with torch.device("meta"):
            student = RadioModel(student_spec(recipe, {n: t.base.dims for n, t in teachers.items()}))
        student.eval().requires_grad_(False)  # torch's counter trips over views of parameters that want gradients
        plan.parameters["student"] = count(student)
    for stream in recipe.streams:
        rows = student_costs(recipe, student, stream, teachers) if student is not None else ()
        for row in rows or sharpener_costs(next(iter(teachers.values())), recipe, stream):
            _add(plan.costs, row)
    return plan


def _add(costs: list[Cost], cost: Cost) -> None:
    """A fixed-size teacher costs the same beside every student size: one row."""
    for other in costs:
        if (other.name, other.stream, other.size) == (cost.name, cost.stream, cost.size):
            other.flops += cost.flops
            return
    costs.append(cost)


def _meta_teacher(name: str, config) -> Teacher:
    """Without its sharpener: the plan counts passes, and the adapter may not exist yet."""
    base = load_teacher(name, config.model_copy(update={"sharpen": "none"}), "meta", meta=True).base
    return Teacher(name, config, base, None, "meta")


def print_plan(recipe: Recipe, source: str) -> int:
    """`dry_run=true`: the plan on the console; exit code 0, whatever is missing."""
    from rich.console import Console
    from rich.table import Table

    plan, speed = make_plan(recipe), measured_speed()
    out = Console(highlight=False, soft_wrap=True)
    out.print(f"plan of {source} (task: {recipe.task}, run: {recipe.run}); nothing is started\n")
    sizes = ", ".join(f"{name} {n / 1e6:.1f} M" for name, n in plan.parameters.items())
    out.print(f"parameters   {sizes}")
    images = ", ".join(f"{name} {plan.images(name):,}" for name in recipe.streams)
    out.print(f"steps        {recipe.steps} in {len(recipe.stages)} stage(s); images a rank: {images}")
    table = Table("network", "stream", "images", "pixels", "grid", "GFLOP an image", "share", "what", box=None)
    everything = sum(cost.flops * plan.images(cost.stream) for cost in plan.costs)
    for cost in plan.costs:
        table.add_row(
            cost.name,
            cost.stream,
            str(recipe.streams[cost.stream].batch),
            "×".join(map(str, cost.size)),
            "×".join(map(str, cost.grid)),
            f"{cost.flops / 1e9:.2f}",
            f"{cost.flops * plan.images(cost.stream) / everything:.0%}",
            cost.passes,
        )
    out.print(table)
    if any(len(stream.size) > 1 for stream in recipe.streams.values()):
        out.print("  (one size is drawn a batch: the GFLOP of each are weighted by how often)")
    ranks = torch.cuda.device_count() or 1
    rows = memory(recipe, plan.parameters, ranks)
    gib = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in rows.items())
    out.print(f"memory       about {sum(rows.values()) / 2**30:.1f} GiB a device with {ranks} rank(s): {gib}")
    here, there = plan.flops / (speed * UTILISATION), plan.flops / (A100 * UTILISATION)
    a_step = ", ".join(f"{plan.flops_a_step(number) / 1e12:.3f}" for number in range(len(recipe.stages)))
    out.print(
        f"time         {a_step} TFLOP a step, {plan.flops / 1e18:.3g} EFLOP in all: about {duration(here)} "
        f"here ({UTILISATION:.0%} of {speed / 1e9:.0f} GFLOP/s, measured now), {duration(there)} on A100s, one a rank"
    )
    if plan.missing:
        out.print(f"\nmissing: {len(plan.missing)} (a real start would stop here)", style="bold")
        for text in plan.missing:
            out.print(f"- {text}", markup=False)
    else:
        out.print("\nnothing is missing: start it without dry_run=true")
    return 0
