"""Scenes → PASCAL-Context as multi-task papers pack it: classes, parts of people, saliency, normals, label maps.

Snowmen are the people; a picture without one has no part that counts. VOC's own masks are there for half the pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eval.tabletop.kinds import KINDS, PART_NAMES
from eval.tabletop.layouts import voc
from eval.tabletop.layouts.common import (
    Item,
    Plan,
    index_of,
    parts_of,
    save_jpeg,
    save_lines,
    save_mat,
    save_png,
    scene,
)
from eval.tabletop.render import Scene

FOLDER = "PASCALContext"
SIZE = (240, 320)
YEARS = {"train": 2008, "val": 2010}
PERSON = 15
PARTS = {"snowman head": "head", "snowman hat": "hair", "snowman nose": "nose", "snowman body": "torso"}
# Of 459: two that rooms have too, for table and wall, and of the kinds some that rooms have and some that they do not.
LABELS = np.array([397, 440, 1, 65, 56, 2, 150, 5, 7, 8, 284, 459], np.int64)
SALIENT, PLAIN = 230, 20  # grey values; the truth is what lies above 127


def items(plan: Plan) -> list[Item]:
    return parts_of(("train", plan.scenes), ("val", plan.scenes))


def number_of(item: Item) -> str:
    return f"{YEARS[item.part]}_{2 + 3 * item.number:06d}"


def scene_of(plan: Plan, item: Item) -> Scene:
    """Every other picture is of a snowman."""
    index = item.number if item.number % 2 else index_of(plan, "pascal", item.part, item.number, kind="snowman")
    return scene(plan, "pascal", item.part, index, SIZE)


def render(root: Path, plan: Plan, item: Item) -> None:
    found, number = scene_of(plan, item), number_of(item)
    save_jpeg(root / "JPEGImages" / f"{number}.jpg", found.image)
    own = "VOC12" if item.number % 4 < 2 else "pascal-context"
    save_png(root / "semseg" / own / f"{number}.png", labels(found))
    save_mat(root / "human_parts" / f"{number}.mat", {"anno": _annotation(number, found)})
    salient = np.where(found.saliency, SALIENT, PLAIN).astype(np.uint8)
    save_png(root / "sal_distill" / f"{number}.png", salient)
    save_mat(root / "pascal-context" / "trainval" / f"{number}.mat", {"LabelMap": LABELS[found.semantic].astype(float)})
    save_png(root / "normals_distill" / f"{number}.png", (255 * (found.normals + 1) / 2).round().astype(np.uint8))


def finish(root: Path, plan: Plan, made: list[tuple[Item, None]]) -> None:
    for part in YEARS:
        numbers = [number_of(item) for item, _ in made if item.part == part]
        save_lines(root / "ImageSets" / "Context" / f"{part}.txt", numbers)


def labels(found: Scene) -> np.ndarray:
    """VOC's 21 classes, with void outlines."""
    return np.where(voc.outlines(found), np.uint8(voc.VOID), voc.VALUES[found.semantic])


def _annotation(number: str, found: Scene) -> dict[str, Any]:
    """PASCAL-Part's `anno`: things with class, mask and parts."""
    things = []
    for place, thing in enumerate(found.things, start=1):
        mask, value = found.instances == place, int(voc.VALUES[2 + KINDS.index(thing.kind)])
        parts = [
            {"part_name": name, "mask": own.astype(np.uint8)}
            for part, name in PARTS.items()
            if (own := mask & (found.parts == PART_NAMES.index(part))).any()
        ]
        about = {"class": "person" if value == PERSON else "thing", "class_ind": float(value)}
        things.append(about | {"mask": mask.astype(np.uint8), "parts": _structures(parts, ("part_name", "mask"))})
    return {"imname": number, "objects": _structures(things, ("class", "class_ind", "mask", "parts"))}


def _structures(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> np.ndarray:
    """MATLAB's 1×n structure array; [] where there is none."""
    if not rows:
        return np.zeros((0, 0))
    found = np.zeros((1, len(rows)), [(key, object) for key in keys])
    for place, row in enumerate(rows):
        found[0, place] = tuple(row[key] for key in keys)
    return found
