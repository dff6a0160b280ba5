"""Rendered scenes → pairs of views of one scene, and pairs of things of one kind with points that mean the same.

A keypoint is a point of a thing's own frame. Its counterparts on another thing of the kind are that point under each
turn that brings the kind onto itself, projected into the other picture and kept where they are seen: exact, not to a
pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.datasets.cameras import Camera, turn_between, world_points
from eval.datasets.split import KeypointPair, ViewPair
from eval.matching import spread
from eval.tabletop.trace import Thing
from teachers.seeding import Part, numpy_rng

TURNS = {"cube": 4, "pyramid": 4, "rocket": 4, "dumbbell": 2, "snowman": 1}  # kind → its symmetry about the vertical
KEYPOINTS = 8  # of a pair, at most
FEWEST = 4  # pairs that share fewer are left out
PER_KIND = 40  # pairs of each kind, at most
NEAR = 0.004  # metres between a point's depth and what its pixel shows: it is seen, not hidden, nor on an edge


@dataclass(frozen=True, eq=False)
class Sight:
    """The main thing of one picture as its camera sees it."""

    thing: Thing
    mask: Tensor  # H×W bool: where it is seen
    depth: Tensor  # H×W, metres
    camera: Camera

    def own(self) -> tuple[Tensor, Tensor]:
        """Points P×3 of its own frame, and the pixels P×2 (x, y) that show them, its outermost ones left out."""
        inner = torch.nn.functional.max_pool2d(1 - self.mask[None].float(), 3, stride=1, padding=1)[0] == 0
        points = world_points(self.depth, self.camera)[:, inner].T.double()
        turn, position = (torch.from_numpy(part).double() for part in (self.thing.rotation, self.thing.position))
        return (points - position) @ turn / self.thing.scale, inner.nonzero().flip(1) + 0.5

    def find(self, own: Tensor) -> Tensor:
        """Points ...×3 of the thing's own frame → where they are seen, ...×2 (x, y in pixels), else NaN."""
        turn, position = (torch.from_numpy(part).double() for part in (self.thing.rotation, self.thing.position))
        places, depth = self.camera.project(own * self.thing.scale @ turn.T + position)
        height, width = self.mask.shape
        within = (places >= 0).all(dim=-1) & (places[..., 0] < width) & (places[..., 1] < height)
        x, y = places.where(within[..., None], 0).long().unbind(dim=-1)
        seen = within & self.mask[y, x] & ((depth - self.depth[y, x]).abs() < NEAR)
        return places.where(seen[..., None], torch.nan).float()

    @property
    def extent(self) -> float:
        """The longer side of its box, in pixels."""
        rows, columns = (self.mask.any(dim=axis).nonzero() for axis in (1, 0))
        return float(max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1)


def view_pairs(rotation: Callable[[int], Tensor], scenes: int, views: int) -> list[ViewPair]:
    """View 0 of each scene with each other view; picture i is view i % views of scene i // views.

    Args:
        rotation: picture → its camera's, 3×3.
    """
    pairs = [(scene * views, scene * views + view) for scene in range(scenes) for view in range(1, views)]
    return [ViewPair(first, second, turn_between(rotation(first), rotation(second))) for first, second in pairs]


def keypoint_pairs(sight: Callable[[int], Sight], kinds: Sequence[str], views: int, *name: Part) -> list[KeypointPair]:
    """Up to `PER_KIND` pairs of each kind that yaw can be told of, of pictures of different scenes.

    Args:
        sight: picture → its main thing.
        kinds: of the main thing of each picture.
        name: of the generator that draws the pairs.
    """
    pairs = []
    for kind, fold in TURNS.items():
        mine = [index for index, other in enumerate(kinds) if other == kind]
        found = 0
        for number in numpy_rng("keypoint pairs", *name, kind).permutation(len(mine) ** 2).tolist():
            first, second = mine[number // len(mine)], mine[number % len(mine)]
            if found == PER_KIND:
                break
            if first // views == second // views:
                continue
            source, targets = shared(sight(first), sight(second), fold)
            if len(source) >= FEWEST:
                pairs.append(KeypointPair(first, second, source, targets, sight(second).extent, kind))
                found += 1
    return pairs


def shared(first: Sight, second: Sight, fold: int) -> tuple[Tensor, Tensor]:
    """Well-spread points that both pictures show: K×2 in the first, K×fold×2 in the second (x, y in pixels)."""
    own, places = first.own()
    targets = second.find(torch.stack([own @ _turn(2 * math.pi * step / fold) for step in range(fold)], dim=1))
    both = targets.isfinite().all(dim=2).any(dim=1).nonzero()[:, 0]
    if not len(both):
        return places[:0], targets[:0]
    chosen = both[spread(own[both], KEYPOINTS)]
    return places[chosen], targets[chosen]


def _turn(yaw: float) -> Tensor:
    c, s = math.cos(yaw), math.sin(yaw)
    return torch.tensor([[c, s, 0], [-s, c, 0], [0, 0, 1]], dtype=torch.float64)  # of row vectors
