"""Scenes → NAVI v1: photographs of a few objects, each in scenes of one place and before many backgrounds.

Depth is the object's alone, its inverse in 16 bits; an annotation's camera takes points of the object's own frame to
the camera's, in millimetres.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from eval.tabletop.layout import draw, main_thing
from eval.tabletop.layouts.common import Item, Plan, index_of, save_jpeg, save_json, save_png, scene, split_of
from eval.tabletop.render import Scene, render_layout

FOLDER = "navi_v1"
SIZE = (288, 384)  # height, width; published: up to 4032 on the longer side
OBJECTS = ("snowman", "rocket", "dumbbell")  # kinds that look different from every side, or nearly so
SCENES = {"multiview": "multiview-00-pixel_5", "wild": "wild_set"}


def items(plan: Plan) -> list[Item]:
    each = max(plan.scenes // 2, 4)  # pictures of an object in a scene
    return [Item(part, number, kind) for kind in OBJECTS for part in SCENES for number in range(each)]


def scene_of(plan: Plan, item: Item) -> Scene:
    """The object stands among others on one table (multiview), or alone on another table in each picture (wild)."""
    data = f"navi-{item.key}"
    index = index_of(plan, data, "multiview", 0, kind=item.key)
    if item.part == "multiview":
        return scene(plan, data, "multiview", index, SIZE, view=item.number)
    found = main_thing(plan.seed, split_of(data, "multiview"), index)
    where, camera = draw(plan.seed, split_of(data, "wild"), item.number)
    there = where.things[0]
    x, y, _ = there.position
    position = np.array([x, y, -found.shape.bottom * found.scale], np.float32)
    yaw = found.yaw + there.yaw / (2 * np.pi) - 0.5  # half a radian to either side: most views pair up within 120°
    layout = replace(where, things=[replace(found, position=position, yaw=yaw)])
    return render_layout(layout, camera, SIZE, seed=plan.seed, split=split_of(data, "wild"), index=item.number, view=0)


def render(root: Path, plan: Plan, item: Item) -> dict[str, Any]:
    """Writes picture, depth and mask; returns the annotation."""
    found, folder, name = scene_of(plan, item), root / folder_of(item), f"{item.number:03d}"
    save_jpeg(folder / "images" / f"{name}.jpg", found.image)
    mask = found.instances == 1
    save_png(folder / "masks" / f"{name}.png", np.where(mask, 255, 0).astype(np.uint8))
    disparity = 65535 * 10 / (1000 * found.depth.astype(np.float64))
    save_png(folder / "depth" / f"{name}.png", np.where(mask, disparity.round(), 0).astype(np.uint16))
    return _annotation(found, item, f"{name}.jpg")


def finish(root: Path, plan: Plan, made: list[tuple[Item, dict[str, Any]]]) -> None:
    for place in dict.fromkeys(folder_of(item) for item, _ in made):
        save_json(root / place / "annotations.json", [note for item, note in made if folder_of(item) == place])


def folder_of(item: Item) -> str:
    return f"tabletop_{item.key}/{SCENES[item.part]}"


def _annotation(found: Scene, item: Item, name: str) -> dict[str, Any]:
    thing, (height, width) = found.things[0], SIZE
    rotation = found.rotation.astype(np.float64) @ thing.rotation
    moved = found.rotation.astype(np.float64) @ (thing.position.astype(np.float64) - found.position)
    x, y, z, w = Rotation.from_matrix(rotation).as_quat().tolist()
    camera = {
        "q": [w, x, y, z], "t": (1000 * moved).tolist(), "focal_length": float(found.intrinsics[0, 0]),
        "camera_model": "rendered",
    }  # fmt: skip
    return {
        "object_id": f"tabletop_{item.key}", "scene_name": SCENES[item.part], "filename": name, "occluded": False,
        "split": "train" if item.part == "multiview" else "val", "image_size": [height, width], "camera": camera,
    }  # fmt: skip
