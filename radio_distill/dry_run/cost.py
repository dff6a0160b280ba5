"""Networks and image sizes → what they cost: operations, parameters and bytes, counted without weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from radio_distill.engine import zero_stage
from radio_distill.mosaic import pictures_a_canvas
from radio_distill.recipe import Recipe
from radio_distill.targets import Teacher
from teachers.features import Encoder, Size
from teachers.radio import RadioModel

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


def student_costs(recipe: Recipe, student: RadioModel, stream: str, teachers: dict[str, Teacher]) -> Iterator[Cost]:
    """The student in a stream, a row a size; one size is drawn a batch, so each counts by its share."""
    config, heads = recipe.streams[stream], tuple(recipe.teachers_of(stream))
    for size in config.size:
        grid = (size[0] // recipe.student.patch, size[1] // recipe.student.patch)
        share = 1 / len(config.size)
        # the backward pass costs two forward ones
        yield Cost("student", stream, size, grid, 3 * flops(student, size, heads) * share, "forward, backward")
        if recipe.loss.mesa.weight:
            yield Cost("its average", stream, size, grid, flops(student, size, ()) * share, "1 pass (MESA)")
        for name in heads:
            yield teacher_cost(teachers[name], stream, grid, config.sharpen, share)


def teacher_cost(teacher: Teacher, stream: str, student_grid: Size, sharpen: bool, share: float) -> Cost:
    """A teacher in a stream, beside a student of `student_grid`; its sharpener's own network is not counted."""
    base, passes, factor = teacher.base, 1, 1
    if sharpen and teacher.config.sharpen not in ("none", "bilinear"):
        factor = sharpening_factor(teacher)
        passes += factor**2 if factor > 1 else 0
    size = teacher.size(tuple(side // factor for side in student_grid), sharpen=False)
    grid = tuple(side * factor for side in base.grid(size))
    text = "1 pass" if passes == 1 else f"{passes} passes + fusion"
    whole = size
    several = pictures_a_canvas(base, base.grid(size), teacher.config.fit == "mosaic")
    if teacher.config.fit != "resize" and several:
        whole, text = base.native_size, f"1 pass for {several}" if several > 1 else "1 pass, padded"
    return Cost(teacher.name, stream, size, grid, passes * flops(base, whole) * share / max(several, 1), text)


def sharpening_factor(teacher: Teacher) -> int:
    """A trained sharpener knows its own factor; one that is not there yet is taken to have the recipe's."""
    from featsharp import adapter, sharpener

    spec = teacher.config.sharpen
    if spec in sharpener.UNTRAINED or sharpener.missing(spec):
        return teacher.config.factor
    return adapter.read_config(sharpener.find(spec))["sharpener"]["factor"]


def sharpener_costs(teacher: Teacher, recipe: Recipe, stream: str) -> list[Cost]:
    """The rows of a `task: sharpen`."""
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
def flops(module: Encoder | RadioModel, size: Size, heads: tuple[str, ...] | None = None) -> float:
    """Floating-point operations of one image forward, counted on the meta device; a student's with some heads only."""
    with torch.device("meta"):
        images = torch.empty(1, 3, *size)
    return count_flops(lambda: module(images) if heads is None else module(images, heads=heads))


def count_flops(call: Callable[[], object]) -> float:
    """Floating-point operations of a call."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def memory(recipe: Recipe, parameters: dict[str, int], ranks: int) -> dict[str, float]:
    """Bytes on one device, roughly: what is trained, its activations, and the frozen teachers."""
    split = {0: 0, 1: 8, 2: 12, 3: 16}[zero_stage(recipe)]  # bytes a parameter that ZeRO divides by the ranks
    students = parameters.get("student", 0)
    out = {"student, gradient, optimiser": students * (BYTES_TRAINED - split + split / ranks)}
    if recipe.optim.ema:
        out["averaged weights"] = 4.0 * students
    if recipe.student:
        width, depth, _ = recipe.student.shape
        tokens = max(
            stream.batch * size[0] * size[1] / recipe.student.patch**2
            for stream in recipe.streams.values()
            for size in stream.size
        )
        blocks = 1 if recipe.student.activation_checkpointing else depth
        out["student's activations"] = tokens * width * (BYTES_ACTIVATION * blocks + 2 * (depth - blocks))
    out["teachers' weights (fp32)"] = 4.0 * sum(n for name, n in parameters.items() if name != "student")
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
