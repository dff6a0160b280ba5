"""A student's heads and their teachers on held-out pictures → how much of each teacher was learnt."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.feature_cache import Stored
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
    "PHI-S space. Feature cosine: mean over all cells; summary error: mean of 1 − cosine; chance of both: the best "
    "constant direction. RankMe: how many directions the backbone's summaries Z use, e to the entropy of Z's singular "
    "values as shares of their sum (Garrido et al. 2023); 1 is what a constant scores, the width or the number of "
    "pictures the most. Shown, not part of Δm%."
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
    encoder = ctx.model.encoder
    needs: list[Need] = [] if encoder.dims.summary is None else [(encoder, "val", "backbone.summary")]
    for name, head in ctx.model.adaptors.items():
        teacher = head.teacher()
        for output in ("spatial", "summary")[: 1 if head.dims.summary is None else 2]:
            needs += [(encoder, "val", f"{name}.{output}"), (teacher, "val", f"backbone.{output}")]
    return needs


def run(ctx: Context) -> Result:
    metrics: dict[str, MetricScore] = {}
    sizes, errors = {}, {}
    for name, head in ctx.model.adaptors.items():
        teacher = head.teacher()
        found = _features(ctx, name, teacher)
        metrics |= {f"feature error {name}": found[0], f"feature cosine {name}": found[1]}
        if head.dims.summary is not None:
            metrics[f"summary error {name}"] = _summaries(ctx, name, teacher)
        sizes[name], errors[name] = list(ctx.view("val", teacher).size), found[2]
    if ctx.model.encoder.dims.summary is not None:
        summaries = ctx.features("val", "backbone.summary").all()
        metrics["RankMe"] = MetricScore(
            value=rank_me(summaries), direction="higher", unit="", n=len(summaries), chance=1.0, counts=COUNTS
        )  # no function of sums over pictures, so no resamples
    return Result(metrics, {"teacher sizes": sizes, "channel errors": errors})


def _features(ctx: Context, name: str, teacher: Encoder) -> tuple[MetricScore, MetricScore, dict[str, float]]:
    """The error and the cosine of a head's maps, and how the squared errors of their channels are spread."""
    ours = ctx.features("val", f"{name}.spatial")
    theirs = ctx.features("val", "backbone.spatial", teacher)
    mean = channel_means(theirs).view(1, -1, 1, 1)
    errors, cosines, direction, channels, cells = [], [], 0.0, 0.0, 0
    for predicted, maps in zip(ours.chunks(), theirs.chunks()):
        predicted, maps = to_grid(predicted, maps.shape[2:]).double(), maps.double()
        errors.append(squared_errors(predicted, maps, mean))
        units = F.normalize(maps)
        cosine = (F.normalize(predicted) * units).sum(dim=1).flatten(1)
        cosines.append(torch.stack([cosine.sum(dim=1), torch.full((len(cosine),), float(cosine.shape[1]))], dim=1))
        direction = direction + units.sum(dim=(0, 2, 3))
        channels = channels + (predicted - maps).square().sum(dim=(0, 2, 3))
        cells += cosine.numel()
    channels = channels / cells
    spread = {"MSE": float(channels.mean()), "deviation over channels": float(channels.std(correction=0))}
    cosine = _metric(ctx, torch.cat(cosines), chance=float(direction.norm() / cells), direction="higher")
    return _metric(ctx, torch.cat(errors), chance=1.0), cosine, spread


def channel_means(maps: Stored) -> Tensor:
    """The mean of each channel over all cells of all pictures, D double."""
    total, cells = 0.0, 0
    for chunk in maps.chunks():
        total = total + chunk.double().sum(dim=(0, 2, 3))
        cells += chunk[:, 0].numel()
    return total / cells


def _metric(ctx: Context, rows: Tensor, chance: float, direction: str = "lower") -> MetricScore:
    identity = ctx.split("val").identity
    return metric(rows.numpy(), ratio, identity, direction=direction, unit="", chance=chance, counts_in_delta=COUNTS)


def rank_me(summaries: Tensor) -> float:
    """e to the entropy of the singular values of N×D, each as a share of their sum: 1 … min(N, D)."""
    shares = torch.linalg.svdvals(summaries.double())
    shares = shares / shares.sum().clamp(min=1e-300)  # all zero: no direction but one
    return float(torch.special.entr(shares).sum().exp())


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
