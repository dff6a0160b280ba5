"""Networks and image sizes → what they cost: operations and bytes, counted part by part on tensors without memory.

Teachers and sharpeners are run as they are. Of the student two shallow ones are run, and its own depth is drawn from
them as a straight line: its blocks are alike. Of many sizes three are run, and the others drawn from them as a
parabola. A rehearsal (`rehearse=true`) runs the whole step, and checks this.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from numpy.polynomial import Polynomial
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from featsharp.task import SharpenObjective
from radio_distill.comparing import compare
from radio_distill.dry_run.fake import Meter, Usage
from radio_distill.mosaic import pictures_a_canvas
from radio_distill.recipe import Recipe
from radio_distill.sights import Sights
from radio_distill.targets import Teacher
from teachers.features import Features, Size
from teachers.radio import RadioModel
from teachers.radio_spec import RadioSpec
from teachers.radio_windows import is_windowed

TRAINED = "forward, backward"
SHALLOW = (2, 3)  # blocks
BYTES = 4  # of an fp32 number
Precision = Callable[[], AbstractContextManager]


@dataclass
class Cost:
    """A row of the plan: one network in one stream, at one size of the student."""

    name: str
    stream: str
    student_size: Size
    size: Size  # of the images that it is shown
    grid: Size
    batch: int
    flops: float  # a micro-batch: forward, and for what is trained forward and backward
    peak: float  # bytes beyond its weights while it runs; of what is trained with the gradients that it makes
    later: float  # the same where an earlier micro-batch has made the gradients
    result: int  # bytes that stay for the loss
    share: float  # of the stream's batches that have this size
    passes: str


# Teachers ---------------------------------------------------------------------------------------------------------


def teacher_costs(sights: Sights, name: str, stream: str, meter: Meter) -> dict[Size, Cost]:
    """A teacher, sharpened if the stream asks for it, beside a student of every size of a stream."""
    config, teacher = sights.recipe.streams[stream], sights.teachers[name]
    shown = {size: sights.view(stream, size).teachers[name].size for size in config.size}

    def measured(size: Size) -> Usage:
        images = torch.empty(config.batch, 3, *size)

        def call() -> Features:
            with torch.no_grad(), sights.precision():
                seen = teacher.see(images, config.sharpen)
                return Features(seen.summary, teacher.phi_s(seen.spatial))

        return meter.measure(call)

    canvas = teacher.config.fit != "resize"  # its cost jumps where one picture more fits beside another
    usages = {size: measured(size) for size in set(shown.values())} if canvas else at_sizes(shown.values(), measured)
    costs = {}
    for size in config.size:
        seen, grid = shown[size], teacher.grid(sights.grid(size), config.sharpen)
        flops, peak = usages[seen]
        held = config.batch * (teacher.base.dims.spatial * grid[0] * grid[1] + (teacher.base.dims.summary or 0))
        share, passes = 1 / len(config.size), _passes(teacher, seen, config.sharpen)
        costs[size] = Cost(name, stream, size, seen, grid, config.batch, flops, peak, peak, BYTES * held, share, passes)
    return costs


def at_sizes(sizes: Iterable[Size], measured: Callable[[Size], Usage]) -> dict[Size, Usage]:
    """What something takes at every image size: of more than three, the rest by the parabola through three.

    What a ViT computes is a parabola of its tokens: attention is quadratic in them, and all else linear.
    """
    ordered = sorted(set(sizes), key=math.prod)
    few = {ordered[0], ordered[len(ordered) // 2], ordered[-1]}
    if len(ordered) == len(few) or len({math.prod(size) for size in few}) < len(few):  # no parabola to lay through
        return {size: measured(size) for size in ordered}
    usages = {size: measured(size) for size in few}
    pixels = [math.prod(size) for size in usages]
    flops, peak = (Polynomial.fit(pixels, column, 2) for column in zip(*usages.values()))
    return {n: usages.get(n) or Usage(flops(math.prod(n)), peak(math.prod(n))) for n in ordered}


def _passes(teacher: Teacher, size: Size, sharpen: bool) -> str:
    encoder = teacher.encoder(sharpen)
    if encoder is not teacher.base:
        finer = [n for n in encoder.adapter.upsampler.tile_levels if n > 1]
        return f"{1 + sum(n**2 for n in finer)} passes + fusion" if finer else "1 pass + upsampler"
    several = pictures_a_canvas(encoder, encoder.grid(size), teacher.config.fit == "mosaic")
    if teacher.config.fit == "resize" or not several:
        return "1 pass"
    return f"1 pass for {several}" if several > 1 else "1 pass, padded"


# The student ------------------------------------------------------------------------------------------------------


class StudentCosts:
    """What a student of a recipe costs at a size; shallow ones are built once."""

    def __init__(self, recipe: Recipe, spec: RadioSpec, sights: Sights, precision: Precision, meter: Meter):
        self.recipe, self.spec, self.sights, self.precision, self.meter = recipe, spec, sights, precision, meter
        most = max(len(recipe.streams_of(number)) for number in range(len(recipe.stages)))
        self.several = most * recipe.optim.accumulate > 1  # micro-batches in a step
        depths = SHALLOW if spec.depth > SHALLOW[-1] else (spec.depth,)
        # Windows are added to the count below: a shallow student has too few blocks for them.
        self.shallow = {depth: RadioModel(replace(spec, depth=depth)) for depth in depths}

    def costs(self, stream: str, targets: dict[Size, dict[str, Size]]) -> Iterator[Cost]:
        """The student at every size of a stream, and its average where the loss asks for that.

        Args:
            targets: by the student's size, the grid of every teacher's map.
        """
        config = self.recipe.streams[stream]
        batch, share, largest = config.batch, 1 / len(config.size), max(config.size, key=math.prod)

        def trained(size: Size, later: bool = False) -> Usage:
            return self._deep(lambda model: self._trained(model, stream, size, targets[size], later))

        def average(size: Size) -> Usage:
            return self._deep(lambda model: self._average(model, batch, size))

        usages = at_sizes(config.size, trained)
        averages = at_sizes(config.size, average) if self.recipe.loss.mesa.weight else {}
        for size in config.size:
            grid, (flops, peak) = self.sights.grid(size), usages[size]
            flops += mean_window_flops(self.recipe, self.spec, grid, batch)
            later = trained(size, later=True).peak if self.several and size == largest else peak  # memory is for these
            yield Cost("student", stream, size, size, grid, batch, flops, peak, later, 0, share, TRAINED)
            if averages:
                flops, peak = averages[size]
                what = "1 pass (MESA)"
                yield Cost("its average", stream, size, size, grid, batch, flops, peak, peak, 0, share, what)

    def _deep(self, measure: Callable[[RadioModel], Usage]) -> Usage:
        found = {depth: measure(model) for depth, model in self.shallow.items()}
        if len(found) == 1:
            return next(iter(found.values()))
        (low, high), (one, two) = SHALLOW, found.values()
        return Usage(*(a + (b - a) * (self.spec.depth - low) / (high - low) for a, b in zip(one, two)))

    def _trained(self, model: RadioModel, stream: str, size: Size, targets: dict[str, Size], later: bool) -> Usage:
        """Forward, losses and backward of a micro-batch; attention sees the whole grid."""
        names, batch = self.recipe.teachers_of(stream), self.recipe.streams[stream].batch
        view = self.sights.view(stream, size)
        wanted = {}
        for name in names:
            dims = self.sights.teachers[name].base.dims
            summary = None if dims.summary is None else torch.empty(batch, dims.summary)
            wanted[name] = Features(summary, torch.empty(batch, dims.spatial, *targets[name]))
        model.train()

        def call() -> None:
            with self.precision():
                said = model(torch.empty(batch, 3, *size), heads=names)
            terms: list[Tensor] = []
            for name in names:
                windows, teacher = (view.student, view.teachers[name]), self.sights.teachers[name]
                found, _ = compare(teacher, said[name], wanted[name], windows, lambda grid: None, self.recipe.loss)
                terms += found.values()
            torch.stack([term.mean() for term in terms]).sum().backward()

        return _measured(model, call, later, self.meter)

    @torch.no_grad()
    def _average(self, model: RadioModel, batch: int, size: Size) -> Usage:
        model.eval()

        def call() -> object:
            with self.sights.precision():
                return model(torch.empty(batch, 3, *size), heads=())

        return self.meter.measure(call)


def mean_window_flops(recipe: Recipe, spec: RadioSpec, grid: Size, batch: int) -> float:
    """What ViTDet windows change in a micro-batch's operations, on the average of those that are drawn at a grid."""
    windows = [n for n in recipe.student.windows if n == 0 or grid[0] % n == grid[1] % n == 0] or [0]
    return sum(window_flops(spec, window, grid, batch) for window in windows) / len(windows)


def window_flops(spec: RadioSpec, window: int | None, grid: Size, batch: int) -> float:
    """The same for one window, against attention over the whole grid."""
    if not window:
        return 0.0
    patches, prefix = grid[0] * grid[1], spec.summary_tokens + spec.registers
    blocks = sum(is_windowed(block, spec.depth, spec.window_period) for block in range(spec.depth))
    times = 1 + 2.5 + spec.activation_checkpointing  # forward, backward, and once more
    return 4.0 * spec.width * (patches * window**2 - (patches + prefix) ** 2) * batch * blocks * times


def _measured(model: nn.Module, call: Callable[[], None], later: bool, meter: Meter) -> Usage:
    """A forward and backward pass of what is trained; `later`: its gradients are there already."""
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if later and parameter.requires_grad else None
    usage = meter.measure(call)
    model.zero_grad(set_to_none=True)
    return usage


# Sharpeners -------------------------------------------------------------------------------------------------------


def sharpener_costs(objective: SharpenObjective, recipe: Recipe, precision: Precision, meter: Meter) -> list[Cost]:
    """The rows of a `task: sharpen`: the teacher's passes, and what is trained on what they gave."""
    [(stream, config)] = recipe.streams.items()
    [name] = recipe.teachers
    encoder, f = objective.encoder, objective.config.factor
    images = torch.empty(config.batch, 3, *objective.image_size)
    kept: list = []
    seen = meter.measure(lambda: kept.append(objective.see(images, torch.Generator(), drop=True)))
    [sight] = kept

    def call() -> None:
        with precision():
            total, _ = objective.model(sight)
        total.backward()

    objective.model.train()
    trained, later = (_measured(objective.model, call, later, meter) for later in (False, True))
    result = sum(x.numel() * x.element_size() for x in tree_leaves(sight) if isinstance(x, Tensor))
    levels = [n for n in objective.model.adapter.upsampler.tile_levels if n > 1]
    passes = 1 + objective.config.views.jitters + sum(n**2 for n in levels)
    view, low = objective.view_size, encoder.native_size
    h, w = encoder.grid(low)
    what = f"{TRAINED}; {sum(p.numel() for p in objective.model.adapter.parameters()) / 1e6:.1f} M parameters"
    return [
        Cost("sharpener", stream, view, view, (f * h, f * w), config.batch, *trained, later.peak, 0, 1.0, what),
        Cost(name, stream, view, low, (h, w), config.batch, *seen, seen.peak, result, 1.0, f"{passes} passes"),
    ]


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
