"""Scenes → Pascal VOC 2012 as its archive unpacks, and the augmented masks that are put beside it.

Masks are palette pictures with outlines of 255 (void); the augmented ones are grey and have none.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from eval.datasets.voc import NAMES
from eval.tabletop.layouts.common import Item, Plan, parts_of, save_bytes, save_jpeg, save_lines, save_png, scene
from eval.tabletop.render import Scene

FOLDER = "VOCdevkit/VOC2012"
SIZE = (250, 334)
VOID = 255
YEARS = {"train": 2007, "val": 2009, "aug": 2010}
# dining table, background (the wall), and of the kinds: sheep, tv monitor, bottle, potted plant, sofa, boat, cat,
# bicycle, person, aeroplane. Other classes never occur.
VALUES = np.array([11, 0, 17, 20, 5, 16, 18, 4, 8, 2, 15, 1], np.uint8)


def items(plan: Plan) -> list[Item]:
    return parts_of(("train", plan.scenes), ("val", plan.scenes), ("aug", plan.scenes))


def number_of(item: Item) -> str:
    """The ID of a picture."""
    return f"{YEARS[item.part]}_{32 + 7 * item.number:06d}"


def scene_of(plan: Plan, item: Item) -> Scene:
    return scene(plan, "voc", item.part, item.number, SIZE)


def render(root: Path, plan: Plan, item: Item) -> None:
    found, number = scene_of(plan, item), number_of(item)
    save_jpeg(root / "JPEGImages" / f"{number}.jpg", found.image)
    save_bytes(root / "Annotations" / f"{number}.xml", _xml(number, found).encode())
    values = VALUES[found.semantic]
    save_png(root / "SegmentationClassAug" / f"{number}.png", values)
    if item.part != "aug":
        void = outlines(found)
        save_png(root / "SegmentationClass" / f"{number}.png", np.where(void, np.uint8(VOID), values), palette())
        save_png(
            root / "SegmentationObject" / f"{number}.png", np.where(void, np.uint8(VOID), found.instances), palette()
        )


def finish(root: Path, plan: Plan, made: list[tuple[Item, None]]) -> None:
    """The lists."""
    own = {part: [number_of(item) for item, _ in made if item.part == part] for part in YEARS}
    lists = {part: own[part] for part in ("train", "val")}
    lists |= {"trainval": sorted(own["train"] + own["val"]), "trainaug": own["train"] + own["aug"]}
    for name, numbers in lists.items():
        save_lines(root / "ImageSets" / "Segmentation" / f"{name}.txt", numbers)


def outlines(found: Scene) -> np.ndarray:
    """H×W bool: a band of five pixels on the boundaries."""
    from scipy.ndimage import binary_dilation

    return binary_dilation(found.boundaries, iterations=2)


def palette() -> list[int]:
    """VOC's 256 colours: the bits of a number, spread over red, green and blue."""
    colours = []
    for number in range(256):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= (number >> channel & 1) << (7 - bit)
            number >>= 3
        colours += rgb
    return colours


def _xml(number: str, found: Scene) -> str:
    """Boxes, counted from 1, both ends inside."""
    height, width = SIZE
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    things = "".join(
        f"<object><name>{escape(NAMES[VALUES[2 + _kind(thing.kind)]].replace(' ', ''))}</name><bndbox>"
        f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for thing, (x0, y0, x1, y1) in zip(found.things, found.boxes.tolist())
    )
    return f"<annotation><folder>VOC2012</folder><filename>{number}.jpg</filename>{size}{things}</annotation>\n"


def _kind(name: str) -> int:
    from eval.tabletop.kinds import KINDS

    return KINDS.index(name)
