"""Frozen feature maps of two views of a thing → how many of their best matches show the same point of it (NAVI-style).

Shapes: D width, h w grid of the map, P points of a picture that lie on the thing, N pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from eval.datasets.split import Split, ViewPair
from eval.dots import POINTS, paint_places
from eval.matching import centres, enlarged, scaled, spread
from eval.paint import picture
from eval.resampling import Draws, metric, together
from eval.scores import MetricScore
from eval.task_settings import TaskSettings
from eval.tasks.task import Context, Example, Result, alone, chosen, maps_of
from teachers.errors import UserError

VERSION = 1
GROUP = "Probe3D"
COUNTS = True
SEEDED = False
FIT = "stretch"
SPLITS = ("val",)
PROTOCOL = (
    "Backbone feature maps of two pictures, enlarged (bicubic) to a quarter (`scale`) of the pictures' own size, unit "
    "length. Each point of the first picture that lies on the thing is matched to the point of the second with the "
    "largest cosine; of each pair the 1000 (`matches`) count that the ratio test likes best (as Probe3D, arXiv "
    "2404.08636, on NAVI, arXiv 2306.09109). The error of a match is the distance in space between its two points. "
    "Metric: recall, the share of matches within 1, 2 and 5 cm, mean of the three, mean over pairs; each of the three, "
    "and recall at 2 cm by the angle between the views, are shown. Errors in pixels are not taken. Chance: a uniformly "
    "random match among the candidates, exactly; the score file also says what a model that knows nothing but places "
    "scores, each point matched to the candidate nearest to it in the picture. Resamples draw objects (or scenes), not "
    "pairs."
)
WITHIN = (0.01, 0.02, 0.05)  # metres
SHOWN = 0.02  # metres: a match that is called right in pictures, and in figures by angle
ANGLES = (0, 30, 60, 90, 120)  # degrees, edges of the bins
ROWS = 2048  # points of the first picture that are compared at once
EXACTLY = "donot_use_mm_for_euclid_dist"  # millimetres between points a metre off are lost in a matrix product


class Settings(TaskSettings):
    """Correspondence between views, nothing trained."""

    task: Literal["correspondence"]
    matches: Annotated[int, Field(ge=1)] = Field(1000, description="best matches of each pair that count")
    scale: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25, description="of the pictures' own size: the grid whose points are matched"
    )


@dataclass(frozen=True, eq=False)
class Points:
    """The points of a picture's grid that lie on the thing."""

    features: Tensor  # P×D, unit length
    space: Tensor  # P×3, metres
    places: Tensor  # P×2, x and y in pixels of the picture


@dataclass(frozen=True, eq=False)
class Matched:
    """What became of each point of the first picture, and what could have."""

    found: Tensor  # P, its match among the second's points
    ratio: Tensor  # P, 1 − (distance of the best feature) / (distance of the second best)
    error: Tensor  # P, metres
    random: Tensor  # P×3, share of the candidates within 1, 2 and 5 cm
    nearest: Tensor  # P, the candidate that is nearest in space
    gap: Tensor  # P, metres to it
    still: Tensor  # P, metres between it and the candidate that is nearest in the picture


partners = alone
parts = maps_of(*SPLITS)


def run(ctx: Context) -> Result:
    val, settings = ctx.split("val"), ctx.settings
    val.truth("points"), val.truth("view_pairs")
    if not len(val.view_pairs):
        raise UserError(f"{val} holds no pairs of views", expected="two pictures of one thing, at least once")
    features = ctx.features("val", "backbone.spatial")
    recalls, randoms, stills, angles, scenes, examples = [], [], [], [], [], []
    for number, pair in enumerate(val.view_pairs):
        maps = features[torch.tensor([pair.first, pair.second])].to(ctx.device)
        views = [points_of(m, val.points(i), settings.scale) for m, i in zip(maps, (pair.first, pair.second))]
        if all(len(view.space) for view in views):
            matched = match(*views)
            recalls.append(recall(best(matched, settings.matches)))
            randoms.append(matched.random.mean(dim=0).cpu().numpy())
            stills.append(recall(matched.still))
            angles.append(pair.angle)
            scenes.append(pair.first if val.scenes is None else val.scenes[pair.first])
            if number in chosen(len(val.view_pairs)):
                examples.append(_example(val, pair, *views, matched))
    if not recalls:
        raise UserError(f"no pair of {val} shows the thing in both pictures", expected="points, or a larger scale")
    facts = {"pairs": len(recalls), "pairs left out, the thing not in both": len(val.view_pairs) - len(recalls)}
    facts["recall if every point stayed in its place"] = round(100 * float(np.mean(stills)), 1)
    drawn = together(f"{val.identity} pairs", scenes, len(recalls))
    figures = metrics(np.stack(recalls), np.stack(randoms), np.array(angles), drawn)
    return Result(figures, facts, examples)


def points_of(features: Tensor, space: Tensor, scale: float) -> Points:
    """A map D×h×w and the truth 3×H×W (NaN off the thing) → the points of the grid that is matched."""
    size = tuple(space.shape[1:])
    grid = scaled(size, scale)
    space = F.interpolate(space[None].float(), grid, mode="nearest-exact")[0].to(features.device)
    there = space.isfinite().all(dim=0)
    places = centres(grid, size, features.device)[there]
    return Points(enlarged(features, grid, "bicubic")[:, there].T.contiguous(), space[:, there].T.contiguous(), places)


def match(first: Points, second: Points) -> Matched:
    """Every point of the first picture to the nearest feature of the second."""
    blocks = zip(first.features.split(ROWS), first.space.split(ROWS), first.places.split(ROWS))
    return Matched(*(torch.cat(rows) for rows in zip(*(_match(*block, second) for block in blocks))))


def _match(features: Tensor, space: Tensor, places: Tensor, second: Points) -> tuple[Tensor, ...]:
    """`Matched` of some points."""
    cosine, found = (features @ second.features.T).topk(min(2, len(second.space)), dim=1)
    away = (1 - cosine).clamp(min=1e-9)
    exact = torch.cdist(space, second.space, compute_mode=EXACTLY)
    error = exact.gather(1, found[:, :1])[:, 0]
    random = torch.stack([(exact < limit).float().mean(dim=1) for limit in WITHIN], dim=1)
    gap, nearest = exact.min(dim=1)
    still = exact.gather(1, torch.cdist(places, second.places, compute_mode=EXACTLY).argmin(dim=1, keepdim=True))[:, 0]
    return found[:, 0], 1 - away[:, 0] / away[:, -1], error, random, nearest, gap, still


def recall(errors: Tensor) -> np.ndarray:
    """The share of errors P that lie within 1, 2 and 5 cm, 3."""
    return np.array([float((errors < limit).float().mean()) for limit in WITHIN])


def best(matched: Matched, count: int) -> Tensor:
    """The errors of the `count` matches that the ratio test likes best."""
    return matched.error[matched.ratio.argsort(descending=True, stable=True)[:count]]


def metrics(recalls: np.ndarray, randoms: np.ndarray, angles: np.ndarray, drawn: Draws) -> dict[str, MetricScore]:
    """Recalls and those of random matches, N×3 each, and angles N (NaN: unknown) → figures."""
    common = {"direction": "higher", "unit": "%"}

    def figure(columns: list[int], among: np.ndarray, counts: bool) -> MetricScore:
        values, chance = recalls[:, columns].mean(axis=1), randoms[:, columns].mean(axis=1)
        contributions = np.stack([np.where(among, values, 0), among], axis=1)
        n, chance = int(among.sum()), 100 * float(chance[among].mean())
        return metric(contributions, _mean, drawn, n=n, chance=chance, counts_in_delta=counts, **common)

    everyone = np.ones(len(recalls), dtype=bool)
    figures = {"recall": figure([0, 1, 2], everyone, True)}
    for column, limit in enumerate(WITHIN):
        figures[f"recall@{100 * limit:.0f}cm"] = figure([column], everyone, False)
    for low, high in zip(ANGLES, ANGLES[1:]):
        among = (angles >= low) & (angles < high)
        if among.any():
            figures[f"recall@{100 * SHOWN:.0f}cm {low}–{high}°"] = figure([WITHIN.index(SHOWN)], among, False)
    return figures


def _mean(sums: np.ndarray) -> np.ndarray:
    return 100.0 * sums[..., 0] / sums[..., 1]


def _example(split: Split, pair: ViewPair, first: Points, second: Points, matched: Matched) -> Example:
    """Points that both pictures show, the same ones for every model, and where the model finds them."""
    visible = (matched.gap < WITHIN[0]).nonzero()[:, 0]
    shown = visible[spread(first.places[visible], POINTS)] if len(visible) else visible
    before, after = picture(split, pair.first), picture(split, pair.second)
    return Example(
        paint_places(before, first.places[shown, None]),
        paint_places(after, second.places[matched.nearest[shown], None]),
        paint_places(after, second.places[matched.found[shown], None], matched.error[shown] < SHOWN),
    )
