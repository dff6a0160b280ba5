"""Scenes → NYUDv2 as multi-task papers pack it: 40 classes and none (0), depth in metres, normals, edges.

As a Kinect, the rendered sensor is blind at its left border: depth 0, normal (0, 0, 0).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eval.tabletop.layouts.common import Item, Plan, parts_of, save_jpeg, save_lines, save_npy, save_png, scene
from eval.tabletop.render import Scene

FOLDER = "NYUDv2"
SIZE = (240, 320)  # published: 425×560
BLIND = 8  # columns
# Of table, wall and the kinds, from 1: table, wall, other prop (the last), box, lamp, other structure, pillow, other
# furniture, chair, bag, person, and unlabelled.
VALUES = np.array([7, 1, 40, 29, 35, 38, 18, 39, 5, 37, 31, 0], np.uint8)


def items(plan: Plan) -> list[Item]:
    return parts_of(("train", plan.scenes), ("val", plan.scenes))


def number_of(item: Item) -> str:
    """The ID of a picture, of 1449."""
    return str(2 * item.number + 1 + (item.part == "val"))


def scene_of(plan: Plan, item: Item) -> Scene:
    return scene(plan, "nyud", item.part, item.number, SIZE)


def render(root: Path, plan: Plan, item: Item) -> None:
    found, number = scene_of(plan, item), number_of(item)
    save_jpeg(root / "images" / f"{number}.jpg", found.image)
    save_png(root / "segmentation" / f"{number}.png", VALUES[found.semantic])
    save_npy(root / "edge" / f"{number}.npy", found.boundaries.astype(np.uint8))
    depth, normals = found.depth.copy(), found.normals.copy()
    depth[:, :BLIND], normals[:, :BLIND] = 0, 0
    save_npy(root / "depth" / f"{number}.npy", depth)
    save_npy(root / "normals" / f"{number}.npy", normals)


def finish(root: Path, plan: Plan, made: list[tuple[Item, None]]) -> None:
    for part in ("train", "val"):
        save_lines(root / "gt_sets" / f"{part}.txt", [number_of(item) for item, _ in made if item.part == part])
