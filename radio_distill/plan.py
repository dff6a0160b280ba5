"""A recipe → its plan: what will be run, what it costs, how long it takes, and what is missing, without weights."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import nn

from radio_distill import tars
from radio_distill.console import duration
from radio_distill.engine import zero_stage
from radio_distill.recipe import Recipe
from radio_distill.student import student_spec
from radio_distill.targets import Teacher, load_teacher
from teachers import catalogue
from teachers.errors import UserError
from teachers.features import Encoder, Size
from teachers.radio import RadioModel

UTILISATION = 0.4  # share of a machine's matrix-product speed that training usually reaches
A100 = 312e12  # FLOP/s in bf16, NVIDIA's data sheet
BYTES_TRAINED = 16  # a parameter in fp32: weight, gradient, two moments
BYTES_ACTIVATION = 34  # a token, channel and block in 16 bit (Korthikanti et al. 2022, arXiv 2205.05198, §4.1)


@dataclass
class Cost:
    """A row of the plan: one network in one stream."""

    name: str
    stream: str
    size: Size
    grid: Size
    flops: float  # one image: forward, and for the student forward and backward
    passes: str


@dataclass
class Plan:
    """All that `dry_run=true` prints."""

    recipe: Recipe
    parameters: dict[str, int]
    costs: list[Cost] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def flops_a_step(self) -> float:
        """On one rank."""
        return sum(cost.flops * self.recipe.streams[cost.stream].batch for cost in self.costs)


def find_missing(recipe: Recipe) -> list[str]:
    """What a real start would lack, each with the command that makes it or the place to get it."""
    found: list[str] = []
    for name, teacher in recipe.teachers.items():
        lacking = catalogue.missing(teacher.encoder, teacher.weights, **teacher.options)
        found += _indent(f"teachers.{name}.weights", lacking)
        if teacher.sharpen != "none":
            from featsharp import sharpener

            found += _indent(f"teachers.{name}.sharpen", sharpener.missing(teacher.sharpen))
    wanted = {f"streams.{name}.shards": stream.shards for name, stream in recipe.streams.items()}
    if recipe.heldout:
        wanted["heldout.shards"] = recipe.heldout.shards
    for key, shards in wanted.items():
        mixed = isinstance(shards, dict)
        sources = {f"{key}.{name}.shards": mix.shards for name, mix in shards.items()} if mixed else {key: shards}
        for place, text in sources.items():
            try:
                tars.resolve(text, place)
            except UserError as error:
                found.append(str(error))
    return found


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
    for stream, config in recipe.streams.items():
        for size in config.size if student is not None else []:
            share = 1 / len(config.size)  # one size is drawn a batch
            grid = (size[0] // recipe.student.patch, size[1] // recipe.student.patch)
            both = 3 * flops(student, size) * share  # the backward pass costs two forward ones
            plan.costs.append(Cost("student", stream, size, grid, both, "forward, backward"))
            for teacher in teachers.values():
                _add(plan.costs, _teacher_cost(teacher, stream, grid, config.sharpen, share))
        if recipe.sharpener:
            plan.costs += _sharpening_costs(next(iter(teachers.values())), recipe, stream)
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


def _teacher_cost(teacher: Teacher, stream: str, student_grid: Size, sharpen: bool, share: float) -> Cost:
    base, passes, factor = teacher.base, 1, 1
    if sharpen and teacher.config.sharpen not in ("none", "bilinear"):
        factor = _factor(teacher)
        passes += factor**2 if factor > 1 else 0
    size = base.native_size
    if base.resolution_flexible:
        size = tuple(side // factor * base.patch_size for side in student_grid)
    grid = tuple(side * factor for side in base.grid(size))
    text = "1 pass" if passes == 1 else f"{passes} passes + fusion"
    return Cost(teacher.name, stream, size, grid, passes * flops(base, size) * share, text)


def _factor(teacher: Teacher) -> int:
    """A trained sharpener knows its own factor; one that is not there yet is taken to have the recipe's."""
    from featsharp import adapter, sharpener

    spec = teacher.config.sharpen
    if spec in sharpener.UNTRAINED or sharpener.missing(spec):
        return teacher.config.factor
    return adapter.read_config(sharpener.find(spec))["sharpener"]["factor"]


def _sharpening_costs(teacher: Teacher, recipe: Recipe, stream: str) -> list[Cost]:
    from featsharp.adapter import Adapter

    base, config = teacher.base, recipe.sharpener
    size, f = base.native_size, config.factor
    h, w = base.grid(size)
    with torch.device("meta"):
        adapter = Adapter(config, base).requires_grad_(False)
        levels = adapter.upsampler.tile_levels
        low = torch.empty(1, base.dims.spatial, h, w)
        maps = tuple(torch.empty(1, base.dims.spatial, n * h, n * w) for n in levels)
        image = torch.empty(1, 3, f * size[0], f * size[1])
    tiles = maps if len(maps) > 1 else (maps or (None,))[0]
    passes = 1 + config.views.jitters + sum(n**2 for n in levels if n > 1)
    both = 3 * count_flops(lambda: adapter(low, tiles, image))
    what = f"forward, backward; {count(adapter) / 1e6:.1f} M parameters"
    trained = Cost("sharpener", stream, (f * size[0], f * size[1]), (f * h, f * w), both, what)
    return [trained, Cost(teacher.name, stream, size, (h, w), passes * flops(base, size), f"{passes} passes")]


def count(module: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@lru_cache(64)  # a teacher of one size stands beside many students
def flops(module: Encoder | RadioModel, size: Size) -> float:
    """Floating-point operations of one image forward, counted on the meta device."""
    with torch.device("meta"):
        images = torch.empty(1, 3, *size)
    return count_flops(lambda: module(images))


def count_flops(call) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def memory(plan: Plan, ranks: int) -> dict[str, float]:
    """Bytes on one device, roughly: what is trained, its activations, and the frozen teachers."""
    recipe = plan.recipe
    stage = zero_stage(recipe)
    split = {0: 0, 1: 8, 2: 12, 3: 16}[stage]  # bytes a parameter that ZeRO divides by the ranks
    trained = plan.parameters.get("student", 0) * (BYTES_TRAINED - split + split / ranks)
    out = {"student, gradient, optimiser": trained}
    if recipe.student:
        width, depth, _ = recipe.student.shape
        tokens = max(
            stream.batch * size[0] * size[1] / recipe.student.patch**2
            for stream in recipe.streams.values() for size in stream.size
        )  # fmt: skip
        blocks = 1 if recipe.student.activation_checkpointing else depth
        out["student's activations"] = tokens * width * (BYTES_ACTIVATION * blocks + 2 * (depth - blocks))
    out["teachers' weights (fp32)"] = 4.0 * sum(n for name, n in plan.parameters.items() if name != "student")
    return out


def measured_speed(seconds: float = 0.5) -> float:
    """FLOP/s of a matrix product on this machine's device, in the precision that training would use."""
    from radio_distill.engine import choose_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if choose_precision("auto", device)[0] == "bf16" else torch.float32
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=dtype)
    (a @ a).sum().item()
    begun, products = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        (a @ a).sum().item()
        products += 1
    return products * 2 * side**3 / (time.perf_counter() - begun)


def print_plan(recipe: Recipe, source: str) -> int:
    """`dry_run=true`: the plan on the console; exit code 0, whatever is missing."""
    from rich.console import Console
    from rich.table import Table

    plan, speed = make_plan(recipe), measured_speed()
    out = Console(highlight=False, soft_wrap=True)
    out.print(f"plan of {source} (task: {recipe.task}, run: {recipe.run}); nothing is started\n")
    sizes = ", ".join(f"{name} {n / 1e6:.1f} M" for name, n in plan.parameters.items())
    out.print(f"parameters   {sizes}")
    samples = {name: stream.batch * recipe.steps for name, stream in recipe.streams.items()}
    out.print(f"steps        {recipe.steps} in {len(recipe.stages)} stage(s); images a rank: "
              + ", ".join(f"{name} {n:,}" for name, n in samples.items()))  # fmt: skip
    table = Table("network", "stream", "images", "pixels", "grid", "GFLOP an image", "share", "what", box=None)
    for cost in plan.costs:
        batch = recipe.streams[cost.stream].batch
        table.add_row(
            cost.name, cost.stream, str(batch), "×".join(map(str, cost.size)), "×".join(map(str, cost.grid)),
            f"{cost.flops / 1e9:.2f}", f"{cost.flops * batch / plan.flops_a_step:.0%}", cost.passes,
        )  # fmt: skip
    out.print(table)
    if any(len(stream.size) > 1 for stream in recipe.streams.values()):
        out.print("  (one size is drawn a batch: the GFLOP of each are weighted by how often)")
    ranks = torch.cuda.device_count() or 1
    rows = memory(plan, ranks)
    gib = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in rows.items())
    out.print(f"memory       about {sum(rows.values()) / 2**30:.1f} GiB a device with {ranks} rank(s): {gib}")
    total = plan.flops_a_step * recipe.steps
    here, there = total / (speed * UTILISATION), total / (A100 * UTILISATION)
    out.print(
        f"time         {plan.flops_a_step / 1e12:.3f} TFLOP a step, {total / 1e18:.3g} EFLOP in all: "
        f"about {duration(here)} "
        f"here ({UTILISATION:.0%} of {speed / 1e9:.0f} GFLOP/s, measured now), {duration(there)} on A100s, one a rank"
    )
    if plan.missing:
        out.print(f"\nmissing: {len(plan.missing)} (a real start would stop here)", style="bold")
        for text in plan.missing:
            out.print(f"- {text}", markup=False)
    else:
        out.print("\nnothing is missing: start it without dry_run=true")
    return 0
