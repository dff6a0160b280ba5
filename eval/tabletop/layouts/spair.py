"""Scenes → SPair-71k: pictures by class, and pairs with keypoints that mean the same on both.

Five of the 18 classes occur. Where a keypoint has several counterparts that are equally right, SPair's format has room
for one: the first that is seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.datasets.cameras import Camera
from eval.tabletop.layouts.common import Item, Plan, index_of, save_jpeg, save_json, save_lines, save_png, scene
from eval.tabletop.pairs import FEWEST, TURNS, Sight, shared
from eval.tabletop.render import Scene

FOLDER = "SPair-71k"
SIZE = (240, 320)
YEARS = {"trn": 2008, "val": 2009, "test": 2010}
CLASSES = {"snowman": "person", "rocket": "aeroplane", "dumbbell": "bicycle", "cube": "tvmonitor", "pyramid": "boat"}
SMALL = 2  # pairs of a class in the small lists, at most


def items(plan: Plan) -> list[Item]:
    """A class of a part each: its pictures are compared with each other."""
    return [Item(part, 0, kind) for part in YEARS for kind in CLASSES]


def pictures(plan: Plan, part: str) -> int:
    """Pictures of a class."""
    return max(plan.scenes // 3, 3) if part == "test" else 3


def scene_of(plan: Plan, part: str, kind: str, number: int) -> Scene:
    return scene(plan, f"spair-{kind}", part, index_of(plan, f"spair-{kind}", part, number, kind=kind), SIZE)


def sight_of(found: Scene) -> Sight:
    camera = Camera.of(found.intrinsics, found.rotation, found.position)
    return Sight(found.things[0], torch.from_numpy(found.instances == 1), torch.from_numpy(found.depth), camera)


def render(root: Path, plan: Plan, item: Item) -> list[dict[str, Any]]:
    """Writes the pictures and masks of a class; returns its pairs, without their numbers."""
    category, sights = CLASSES[item.key], {}
    for number in range(pictures(plan, item.part)):
        found, name = scene_of(plan, item.part, item.key, number), stem(item.part, number)
        save_jpeg(root / "JPEGImages" / category / f"{name}.jpg", found.image)
        save_png(root / "Segmentation" / category / f"{name}.png", (found.instances == 1).astype(np.uint8))
        sights[name] = sight_of(found), found.boxes[0].tolist()
    return [
        pair
        for first in sights
        for second in sights
        if first != second and (pair := _pair(category, first, second, sights, TURNS[item.key])) is not None
    ]


def finish(root: Path, plan: Plan, made: list[tuple[Item, list[dict[str, Any]]]]) -> None:
    for part in YEARS:
        pairs = [pair for item, own in made if item.part == part for pair in own]
        small = [pair for item, own in made if item.part == part for pair in own[:SMALL]]
        numbered = {id(pair): f"{n:06d}-{pair['filename']}" for n, pair in enumerate(pairs, start=1)}
        for n, pair in enumerate(pairs):
            name = numbered[id(pair)]
            save_json(root / "PairAnnotation" / part / f"{name}.json", pair | {"pair_id": n, "filename": name})
        for size, listed in (("large", pairs), ("small", small)):
            save_lines(root / "Layout" / size / f"{part}.txt", [numbered[id(pair)] for pair in listed])


def stem(part: str, number: int) -> str:
    """A picture's name, without `.jpg`."""
    return f"{YEARS[part]}_{33 + 5 * number:06d}"


def _pair(category: str, first: str, second: str, sights: dict, fold: int) -> dict[str, Any] | None:
    """Whole pixels: the one that a point lies in. None where the two share too few points."""
    (one, box), (other, other_box) = sights[first], sights[second]
    source, targets = shared(one, other, fold)
    if len(source) < FEWEST:
        return None
    seen = targets.isfinite().all(dim=2).int().argmax(dim=1)
    target = targets[torch.arange(len(targets)), seen]
    return {
        "filename": f"{first}-{second}:{category}", "src_imname": f"{first}.jpg", "trg_imname": f"{second}.jpg",
        "src_imsize": [SIZE[1], SIZE[0], 3], "trg_imsize": [SIZE[1], SIZE[0], 3], "src_bndbox": box,
        "trg_bndbox": other_box, "category": category, "category_id": list(CLASSES.values()).index(category),
        "src_kps": source.floor().int().tolist(), "trg_kps": target.floor().int().tolist(),
        "kps_ids": [str(n) for n in range(len(source))], "mirror": 0, "viewpoint_variation": 0, "scale_variation": 0,
        "truncation": 0, "occlusion": 0,
    }  # fmt: skip
