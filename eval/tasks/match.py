"""A student's heads and their teachers on held-out pictures → how much of each teacher was learnt."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.resampling import metric, ratio
from eval.scores import MetricScore
from eval.tasks.task import Context, Need, NotApplicable, Result, TaskSettings
from teachers.features import Encoder

VERSION = 1
GROUP = "Teacher match"
COUNTS = False
SEEDED = False
FIT = "crop"
SPLITS = ("val",)
PROTOCOL = (
    "Each head against its own teacher, unsharpened, on held-out pictures; the teacher sees them at its native size; "
    "where grids differ the student's map is resized to the teacher's. Feature error: Σ‖x − t‖² / Σ‖t − mean t‖² over "
    "all cells: 1.0 is what the best constant scores. PHI-S is a rotation and one scale, so the figure is the same in "
    "PHI-S space. Summary error: mean of 1 − cosine; chance: the best constant direction. Shown, not part of Δm%."
)


class Settings(TaskSettings):
    """Teacher match."""

    task: Literal["match"]


def partners(ctx: Context) -> list[Encoder]:
    """The teachers: their weights decide the figures too."""
    return [head.teacher() for head in ctx.model.adaptors.values()]


def parts(ctx: Context) -> list[Need]:
    if not ctx.model.adaptors:
        raise NotApplicable("the model has no heads")
    needs: list[Need] = []
    for name, head in ctx.model.adaptors.items():
        teacher = head.teacher()
        for output in ("spatial", "summary")[: 1 if head.dims.summary is None else 2]:
            needs += [(ctx.model.encoder, "val", f"{name}.{output}"), (teacher, "val", f"backbone.{output}")]
    return needs


def run(ctx: Context) -> Result:
    metrics: dict[str, MetricScore] = {}
    sizes = {}
    for name, head in ctx.model.adaptors.items():
        teacher = head.teacher()
        metrics[f"feature error {name}"] = _features(ctx, name, teacher)
        if head.dims.summary is not None:
            metrics[f"summary error {name}"] = _summaries(ctx, name, teacher)
        sizes[name] = list(ctx.view("val", teacher).size)
    return Result(metrics, {"teacher sizes": sizes})


def _features(ctx: Context, name: str, teacher: Encoder) -> MetricScore:
    ours = ctx.features("val", f"{name}.spatial")
    theirs = ctx.features("val", "backbone.spatial", teacher)
    total, cells = 0.0, 0
    for maps in theirs.chunks():
        total = total + maps.double().sum(dim=(0, 2, 3))
        cells += maps[:, 0].numel()
    mean = (total / cells).view(1, -1, 1, 1)
    rows = []
    for predicted, maps in zip(ours.chunks(), theirs.chunks()):
        rows.append(squared_errors(to_grid(predicted, maps.shape[2:]).double(), maps.double(), mean))
    return _metric(ctx, torch.cat(rows), chance=1.0)


def _metric(ctx: Context, rows: Tensor, chance: float) -> MetricScore:
    identity = ctx.split("val").identity
    return metric(rows.numpy(), ratio, identity, direction="lower", unit="", chance=chance, counts_in_delta=COUNTS)


def to_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """B×D×h×w → B×D×grid: bilinear, antialiased where it shrinks."""
    if tuple(maps.shape[2:]) == tuple(grid):
        return maps
    return F.interpolate(maps, tuple(grid), mode="bilinear", antialias=True, align_corners=False)


def squared_errors(predicted: Tensor, target: Tensor, mean: Tensor) -> Tensor:
    """Of each picture: (Σ‖x − t‖², Σ‖t − mean‖²), B×2."""
    return torch.stack([(predicted - target).square().flatten(1).sum(1), (target - mean).square().flatten(1).sum(1)], 1)


def _summaries(ctx: Context, name: str, teacher: Encoder) -> MetricScore:
    ours = F.normalize(ctx.features("val", f"{name}.summary").all().double())
    theirs = F.normalize(ctx.features("val", "backbone.summary", teacher).all().double())
    errors = 1 - (ours * theirs).sum(dim=1)
    constant = 1 - theirs.mean(dim=0).norm().item()  # the direction of the mean is the best one
    return _metric(ctx, torch.stack([errors, torch.ones_like(errors)], dim=1), chance=constant)
