"""Frozen feature maps and metric depth → how many pixels a probe gets right, and its RMSE in metres (Probe3D).

Shapes: N pictures, B of a step, D width, h w grid, L×L label grid, K bins.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from eval.datasets.split import Split
from eval.dpt import HEADS, DptSettings, build_head
from eval.feature_cache import Stored
from eval.geometry_metrics import DepthErrors, Figure, depth_errors, in_range, over_pictures, rmse, share, stack
from eval.paint import paint_depth, picture
from eval.probes import answers, train, value_grid
from eval.tasks.task import Context, Example, Result, alone, chosen, maps_of
from teachers.errors import UserError
from teachers.seeding import seeded

VERSION = 1
GROUP = "Probe3D"
COUNTS = True
SEEDED = True
FIT = "stretch"
SPLITS = ("train", "val")
PROTOCOL = (
    f"Backbone feature maps, frozen, and a head trained on them. {HEADS}Depth: evenly spaced bins from near to "
    "far, weighted by relu(logit) + 0.1 over its sum (AdaBins), averaged. Training: AdamW, linear warm-up and cosine "
    "learning rate; 10 · √(mean g² − 0.85 · mean(g)²), g the error of log depth, plus 0.5 · the mean absolute step of "
    "g between neighbours at 4 scales; depth enlarged bilinearly to the label grid (nearest pixel of the truth); "
    "pictures whole, not augmented. Test: depth enlarged bilinearly to the truth's own size. Pixels that are unknown, "
    "or nearer than near or farther than far, count for nothing. Metrics: share of pixels that are less than a factor "
    "δ off, and RMSE; each picture's own figure, averaged over pictures (as Probe3D does; others pool all pixels, "
    "which weighs pictures by what is known of them and puts the square root last). A seed decides the head's "
    "initialisation and the order of pictures. Chance: always the training pixels' median depth."
)
FIGURES = {
    "depth δ<1.25": Figure(partial(share, bound=0), "%", "higher"),
    "depth δ<1.25²": Figure(partial(share, bound=1), "%", "higher", counts=False),
    "depth δ<1.25³": Figure(partial(share, bound=2), "%", "higher", counts=False),
    "depth RMSE": Figure(rmse, " m", "lower"),
}
FLOOR = 0.1  # of a bin's weight before normalising: a gradient reaches bins that relu has switched off
VARIANCE_FOCUS, SILOG_WEIGHT, GRADIENT_WEIGHT, SCALES = 0.85, 10.0, 0.5, 4


class Settings(DptSettings):
    """Depth."""

    task: Literal["depth"]
    bins: Annotated[int, Field(ge=2)] = Field(256, description="of depth")
    near: Annotated[float, Field(gt=0)] = Field(0.001, description="metres; what is nearer does not count")
    far: Annotated[float, Field(gt=0)] = Field(10.0, description="metres; what is farther does not count")

    @field_validator("far")
    @classmethod
    def _behind_near(cls, value: float, info: ValidationInfo) -> float:
        if "near" in info.data and value <= info.data["near"]:
            raise ValueError(f"far ({value:g} m) must be farther than near ({info.data['near']:g} m)")
        return value


partners = alone
parts = maps_of(*SPLITS)


def run(ctx: Context) -> Result:
    train_split, val, settings = ctx.split("train"), ctx.split("val"), ctx.settings
    train_split.truth("depth"), val.truth("depth")
    depth = value_grid(train_split, "depth", settings.labels)[:, 0]
    counting = depth[in_range(depth, settings.near, settings.far)]
    if not len(counting):
        raise _nothing_known(train_split, settings)
    median = float(counting.median())
    head = fit(ctx.features("train", "backbone.spatial"), depth, settings, ctx.seed, ctx.device)
    errors, constant, examples = predict(head, ctx.features("val", "backbone.spatial"), val, median, settings)
    if not errors.known.any():
        raise _nothing_known(val, settings)
    scores = over_pictures(FIGURES, errors, constant, val)
    return Result(scores, {"median training depth": round(median, 4)}, examples)


def fit(
    features: Stored, depth: Tensor, settings: Settings, seed: int, device: torch.device | str = "cpu"
) -> nn.Module:
    """Train a head on maps N×D×h×w and depth N×L×L in metres, NaN where unknown; it answers B×1×h'×w' metres."""
    with seeded("depth probe", seed):
        bins = Bins(settings.near, settings.far, settings.bins)
        head = nn.Sequential(build_head(features.width, settings.bins, settings), bins)

    def loss(predicted: Tensor, numbers: Tensor) -> Tensor:
        truth = depth[numbers].to(predicted.device)
        predicted = F.interpolate(predicted, truth.shape[1:], mode="bilinear", align_corners=False)[:, 0]
        return depth_loss(predicted, truth, in_range(truth, settings.near, settings.far))

    return train(head, features, loss, settings, ("depth order", seed), device)


class Bins(nn.Module):
    """B×K×h×w logits → B×1×h×w metres between `near` and `far`: the bins' average, weighted by relu(logit) + 0.1."""

    def __init__(self, near: float, far: float, count: int):
        super().__init__()
        self.register_buffer("depths", torch.linspace(near, far, count))

    def forward(self, logits: Tensor) -> Tensor:
        weights = F.relu(logits) + FLOOR
        return torch.einsum("bkhw,k->bhw", weights, self.depths)[:, None] / weights.sum(dim=1, keepdim=True)


def depth_loss(predicted: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Scale-invariant log error and its steps between neighbours; B×L×L each, `predicted` > 0, over `known` pixels.

    (Eigen et al. 2014 with AdaBins' weights; Li & Snavely 2018.) 0 for a batch of which nothing is known.
    """
    if not known.any():
        return predicted.sum() * 0
    error = predicted.log() - torch.where(known, truth, 1).log()
    seen = error[known]
    # A sum of positive terms, unlike mean g² − 0.85 · mean(g)²; the root of 0 has no finite gradient.
    spread = seen.var(correction=0) + (1 - VARIANCE_FOCUS) * seen.mean().square()
    return SILOG_WEIGHT * (spread + 1e-8).sqrt() + GRADIENT_WEIGHT * gradient_loss(error, known)


def gradient_loss(error: Tensor, known: Tensor) -> Tensor:
    """Mean absolute step of log errors B×L×L between vertical and horizontal neighbours that are both known, summed
    over the grid and every 2nd, 4th and 8th point of it."""
    total = error.new_zeros(())
    for scale in range(SCALES):
        thin, there = (values[:, :: 2**scale, :: 2**scale] for values in (error, known))
        steps = [thin.diff(dim=axis).abs()[_both(there, axis)] for axis in (1, 2)]
        total = total + sum(step.sum() / max(len(step), 1) for step in steps)
    return total


def _both(known: Tensor, axis: int) -> Tensor:
    """Whether a point and the next one along `axis` are known."""
    last = known.shape[axis] - 1
    return known.narrow(axis, 0, last) & known.narrow(axis, 1, last)


def predict(
    head: nn.Module, features: Stored, split: Split, median: float, settings: Settings
) -> tuple[DepthErrors, DepthErrors, list[Example]]:
    """Errors of each picture at its truth's own size, those of always answering `median`, and some answers shown."""
    depth, near, far = split.truth("depth"), settings.near, settings.far
    errors, constant, examples = [], [], []
    for index, answer in enumerate(answers(head, features, settings.batch)):
        truth = depth(index).to(answer.device)
        large = F.interpolate(answer[None], truth.shape, mode="bilinear", align_corners=False)[0, 0]
        errors.append(depth_errors(large, truth, near, far))
        constant.append(depth_errors(torch.full_like(truth, median), truth, near, far))
        if index in chosen(split.count):
            examples.append(_example(split, index, truth, large, settings))
    return stack(errors), stack(constant), examples


def _example(split: Split, index: int, truth: Tensor, answer: Tensor, settings: Settings) -> Example:
    """Colours span the true depths that count, so that models compare; what does not count is grey in the truth."""
    shown = truth.masked_fill(~in_range(truth, settings.near, settings.far), torch.nan)
    known = shown[shown.isfinite()]
    low, high = (float(known.min()), float(known.max())) if len(known) else (settings.near, settings.far)
    return Example(picture(split, index), paint_depth(shown, low, high), paint_depth(answer, low, high))


def _nothing_known(split: Split, settings: Settings) -> UserError:
    return UserError(
        f"no pixel of {split} has a depth between {settings.near:g} and {settings.far:g} m",
        expected="depth in metres within near and far",
        todo="set near and far of the task to the range of the data, or check the data's unit",
    )
