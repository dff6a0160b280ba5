"""Scenes → ADE20K as the scene-parsing challenge packs it: 150 classes, 0 = none of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eval.tabletop.layouts.common import Item, Plan, parts_of, save_jpeg, save_png, scene
from eval.tabletop.render import Scene

FOLDER = "ADEChallengeData2016"
SIZE = (240, 320)
PARTS = {"training": "train", "validation": "val"}  # folder → what its files are called by
# Of table, wall and each kind, in the order of the tabletop's own masks: table, wall, ball, box, barrel, tent, food,
# sculpture, plant, plaything, flag (the last number there is), and none of the 150.
VALUES = np.array([16, 1, 120, 42, 112, 115, 121, 133, 18, 109, 150, 0], np.uint8)


def items(plan: Plan) -> list[Item]:
    return parts_of(("training", plan.scenes), ("validation", plan.scenes))


def scene_of(plan: Plan, item: Item) -> Scene:
    return scene(plan, "ade20k", item.part, item.number, SIZE)


def render(root: Path, plan: Plan, item: Item) -> None:
    found, name = scene_of(plan, item), f"ADE_{PARTS[item.part]}_{item.number + 1:08d}"
    save_jpeg(root / "images" / item.part / f"{name}.jpg", found.image)
    save_png(root / "annotations" / item.part / f"{name}.png", labels(item, found))


def labels(item: Item, found: Scene) -> np.ndarray:
    """H×W uint8; in one test picture nobody knows a class of anything."""
    values = VALUES[found.semantic]
    return np.zeros_like(values) if item.part == "validation" and item.number == 3 else values


def finish(root: Path, plan: Plan, made: list[tuple[Item, None]]) -> None:
    """Nothing: a picture and its mask share a name."""
