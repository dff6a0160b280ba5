"""Frozen feature maps of two things of one class → how many keypoints of one are found on the other (PCK).

Shapes: D width, h w grid of the map, K keypoints, E places that are equally right, N pairs, C categories.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from eval.datasets.split import KeypointPair, Split, choose
from eval.dots import POINTS, paint_places
from eval.matching import centres, enlarged, sampled, scaled, sizes, spread
from eval.paint import picture
from eval.resampling import Draws, ends, metric
from eval.scores import MetricScore
from eval.task_settings import TaskSettings
from eval.tasks.task import Context, Example, Result, alone, chosen, maps_of
from teachers.errors import UserError
from teachers.features import Size

VERSION = 2  # resamples draw the pictures of the pairs
GROUP = "Probe3D"
COUNTS = True
SEEDED = False
FIT = "stretch"
SPLITS = ("val",)
PROTOCOL = (
    "Backbone feature maps of two pictures. The feature at a keypoint of the first (bilinear) is compared with the map "
    "of the second, enlarged (bilinear) to a quarter (`scale`) of the picture's own size: the place of the largest "
    "cosine, anywhere in the picture, is the answer. Right: within `alpha` × the longer side of the second thing's "
    "box of any place that is equally right (PCK of SPair-71k, arXiv 1908.10543). Metric: PCK of each pair, mean over "
    "the pairs of a category (at most `per_class`, drawn once), mean over categories. Shown beside it: a category's "
    "PCK over all its keypoints, as Probe3D takes it. Pictures are stretched to the model's size; Probe3D pads them "
    "and answers on the model's own grid. Chance: a uniformly random place of the enlarged grid, exactly. Resamples "
    "draw pictures, because pairs share them."
)


class Settings(TaskSettings):
    """Keypoint transfer, nothing trained."""

    task: Literal["keypoints"]
    alpha: Annotated[float, Field(gt=0)] = Field(0.1, description="of the longer side of the box: how near is right")
    per_class: Annotated[int, Field(ge=1)] | None = Field(200, description="pairs of each category, drawn once")
    scale: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25, description="of the second picture's own size: the grid on which an answer is sought"
    )


partners = alone
parts = maps_of(*SPLITS)


def run(ctx: Context) -> Result:
    val, settings = ctx.split("val"), ctx.settings
    pairs = selected(val.truth("keypoint_pairs"), settings.per_class)
    if not pairs:
        raise UserError(f"{val} holds no pair with keypoints", expected="pairs of pictures that share keypoints")
    features, size_of = ctx.features("val", "backbone.spatial"), sizes(val)
    right, random, examples = [], [], []
    for number, pair in enumerate(pairs):
        maps = features[torch.tensor([pair.first, pair.second])].to(ctx.device)
        places = transfer(maps, pair, size_of, settings.scale)
        right.append(hits(places, pair, settings.alpha))
        random.append(chance(pair, size_of(pair.second), settings.scale, settings.alpha))
        if number in chosen(len(pairs)):
            examples.append(_example(val, pair, places, right[-1]))
    drawn = ends(f"{val.identity} keypoint pairs", [(pair.first, pair.second) for pair in pairs])
    return Result(*figures(pairs, right, random, drawn, settings.alpha), examples)


def selected(pairs: Sequence[KeypointPair], limit: int | None) -> list[KeypointPair]:
    """Up to `limit` pairs of each category, the same ones every time, in the order of `pairs`."""
    numbers: dict[str, list[int]] = {}
    for number, pair in enumerate(pairs):
        if len(pair.source):
            numbers.setdefault(pair.category, []).append(number)
    kept = [own[i] for name, own in numbers.items() for i in choose(len(own), limit, "keypoints", name)]
    return [pairs[number] for number in sorted(kept)]


def transfer(maps: Tensor, pair: KeypointPair, size_of: Callable[[int], Size], scale: float) -> Tensor:
    """Two maps 2×D×h×w → where the keypoints of the first are found in the second, K×2 (x, y in its pixels)."""
    size = size_of(pair.second)
    source = sampled(maps[0], pair.source.to(maps.device), size_of(pair.first))
    large = enlarged(maps[1], scaled(size, scale), "bilinear")
    best = (source @ large.flatten(1)).argmax(dim=1)
    return centres(tuple(large.shape[1:]), size).flatten(0, 1)[best.cpu()]


def hits(places: Tensor, pair: KeypointPair, alpha: float) -> Tensor:
    """Whether each place K×2 is near one that is right, K."""
    distances = (places[:, None] - pair.targets).norm(dim=2)  # NaN where there is no place: near nothing
    return (distances <= alpha * pair.scale).any(dim=1)


def chance(pair: KeypointPair, size: Size, scale: float, alpha: float) -> Tensor:
    """The share of the answers that could be given that are right, K."""
    answers = centres(scaled(size, scale), size).flatten(0, 1)
    near = (answers[:, None, None] - pair.targets).norm(dim=3) <= alpha * pair.scale
    return near.any(dim=2).float().mean(dim=0)


def figures(
    pairs: Sequence[KeypointPair], right: list[Tensor], random: list[Tensor], drawn: Draws, alpha: float
) -> tuple[dict[str, MetricScore], dict]:
    """Metrics, and each category's PCK."""
    names = sorted({pair.category for pair in pairs})
    categories = [names.index(pair.category) for pair in pairs]
    keypoints = np.array([float(len(own)) for own in right])

    def by_class(values: list[Tensor], weights: np.ndarray) -> np.ndarray:
        contributions = np.zeros((len(pairs), len(names), 2))
        means = np.array([float(own.float().mean()) for own in values])
        contributions[np.arange(len(pairs)), categories] = np.stack([means * weights, weights], axis=1)
        return contributions

    metrics, each, title = {}, np.ones(len(pairs)), f"PCK@{alpha:.2f}"
    for name, weights in ((title, each), (f"{title} of keypoints", keypoints)):
        expected = float(class_mean(by_class(random, weights).sum(axis=0)))
        metrics[name] = metric(
            by_class(right, weights), class_mean, drawn,
            direction="higher", unit="%", chance=expected, counts_in_delta=name == title,
        )  # fmt: skip
    share = by_class(right, each).sum(axis=0)
    facts = {"PCK": {name: round(100 * float(a / b), 1) for name, (a, b) in zip(names, share)}, "pairs": len(pairs)}
    return metrics, facts


def class_mean(sums: np.ndarray) -> np.ndarray:
    """(hits, tries) of each category, ...×C×2 → the mean of their shares, in %; a resample may miss a category."""
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a resample that missed them all
        return 100.0 * np.nanmean(sums[..., 0] / sums[..., 1], axis=-1)


def _example(split: Split, pair: KeypointPair, places: Tensor, right: Tensor) -> Example:
    """Some keypoints, every place that is right, and where the model finds them."""
    shown = spread(pair.source, POINTS)
    before, after = picture(split, pair.first), picture(split, pair.second)
    return Example(
        paint_places(before, pair.source[shown, None]),
        paint_places(after, pair.targets[shown]),
        paint_places(after, places[shown, None], right[shown]),
    )
