"""Scenes → Cityscapes as its archives unpack: pictures by city, label ids, instance ids, colours and polygons."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eval.tabletop.kinds import KINDS
from eval.tabletop.layouts.common import Item, Plan, parts_of, polygons, save_json, save_png, scene
from eval.tabletop.render import Scene

FOLDER = "cityscapes"
SIZE = (256, 512)  # published: 1024×2048
CITIES = {"train": ("aachen", "bochum"), "val": ("frankfurt", "munster")}
EGO, BORDER = 1, 3  # the car's own hood, and what lies outside of the rectified picture
NAMES = {  # label id → class and its colour
    0: ("unlabeled", (0, 0, 0)), 1: ("ego vehicle", (0, 0, 0)), 3: ("out of roi", (0, 0, 0)),
    7: ("road", (128, 64, 128)), 11: ("building", (70, 70, 70)), 17: ("pole", (153, 153, 153)),
    19: ("traffic light", (250, 170, 30)), 20: ("traffic sign", (220, 220, 0)), 21: ("vegetation", (107, 142, 35)),
    23: ("sky", (70, 130, 180)), 24: ("person", (220, 20, 60)), 26: ("car", (0, 0, 142)), 28: ("bus", (0, 60, 100)),
    29: ("caravan", (0, 0, 90)), 33: ("bicycle", (119, 11, 32)),
}  # fmt: skip
# Of table, wall and the kinds; caravans (29) are annotated and do not count.
VALUES = np.array([7, 11, 26, 28, 17, 20, 19, 23, 21, 33, 24, 29], np.uint8)
WITH_INSTANCES = (24, 26, 28, 29, 33)


def items(plan: Plan) -> list[Item]:
    return parts_of(("train", plan.scenes), ("val", plan.scenes))


def scene_of(plan: Plan, item: Item) -> Scene:
    return scene(plan, "cityscapes", item.part, item.number, SIZE)


def name_of(item: Item) -> str:
    """`<city>/<city>_SSSSSS_FFFFFF`: sequence and frame."""
    cities = CITIES[item.part]
    city = cities[item.number % len(cities)]
    return f"{city}/{city}_{item.number:06d}_000019"


def render(root: Path, plan: Plan, item: Item) -> None:
    found, name = scene_of(plan, item), name_of(item)
    save_png(root / "leftImg8bit" / item.part / f"{name}_leftImg8bit.png", found.image)
    truth, values = root / "gtFine" / item.part / name, labels(found)
    save_png(truth.with_name(f"{truth.name}_gtFine_labelIds.png"), values)
    save_png(truth.with_name(f"{truth.name}_gtFine_instanceIds.png"), instances(found, values))
    colours = np.zeros((256, 3), np.uint8)
    colours[list(NAMES)] = [colour for _, colour in NAMES.values()]
    save_png(truth.with_name(f"{truth.name}_gtFine_color.png"), colours[values])
    save_json(truth.with_name(f"{truth.name}_gtFine_polygons.json"), _document(found))


def finish(root: Path, plan: Plan, made: list[tuple[Item, None]]) -> None:
    """Nothing: names say all."""


def labels(found: Scene) -> np.ndarray:
    """H×W uint8 label ids, with the hood below and the frame's border around."""
    values = VALUES[found.semantic]
    values[-SIZE[0] // 16 :] = EGO
    values[:, [0, 1, -2, -1]] = values[[0, -1]] = BORDER
    return values


def instances(found: Scene, values: np.ndarray) -> np.ndarray:
    """H×W uint16: the label id, or 1000 × it and the number of the thing where things of the class are told apart."""
    several = np.isin(values, WITH_INSTANCES)
    return np.where(several, 1000 * values.astype(np.uint16) + found.instances - 1, values).astype(np.uint16)


def _document(found: Scene) -> dict:
    """The outlines of the things; what lies behind comes first."""
    things = [
        {"label": NAMES[int(VALUES[2 + KINDS.index(thing.kind)])][0], "polygon": np.reshape(line, (-1, 2)).tolist()}
        for number, thing in reversed(list(enumerate(found.things, start=1)))
        for line in polygons(found.instances == number)
    ]
    return {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": things}
