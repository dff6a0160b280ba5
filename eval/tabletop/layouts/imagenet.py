"""Scenes → ImageNet-1k as it unpacks: 1000 class folders called by WordNet codes, with their real codes.

A few classes are of pictures that their published names tell (`LOOKS`): zero-shot finds these, and only if it asks by
the right names in the right order. The other classes are there to be asked for too; their pictures are cut out of
scenes that have nothing to do with them.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from eval.datasets.wordnet import imagenet_names
from eval.tabletop.layouts.common import Item, Plan, index_of, save_bytes, save_jpeg, scene
from eval.tabletop.shards import encode
from teachers.seeding import numpy_rng

FOLDER = "imagenet"
LOOKS = {  # code → main things that its name, in CLIP's list, says something of
    "n01677366": {"colour": "green"},  # green iguana
    "n01773157": {"colour": "yellow"},  # yellow garden spider
    "n02009229": {"colour": "blue"},  # little blue heron
    "n02280649": {"colour": "white", "size": "small"},  # small white butterfly
    "n03255030": {"kind": "dumbbell"},
    "n07734744": {"kind": "mushroom"},
    "n07747607": {"colour": "orange", "kind": "ball"},  # orange
}
SIZES = ((96, 128), (128, 96), (112, 112))  # height, width; ImageNet's pictures vary, too
VAL = 4  # test pictures of a told class, times the plan's scenes
WINDOW = 80  # pixels: of the pictures that are cut out


def items(plan: Plan) -> list[Item]:
    told = [
        Item(part, number, code)
        for code in LOOKS
        for part, count in (("train", plan.scenes), ("val", VAL * plan.scenes))
        for number in range(count)
    ]
    return told + [Item("others", number) for number in range(_sheets(plan))]


def render(root: Path, plan: Plan, item: Item) -> None:
    if item.part == "others":
        _others(root, plan, item.number)
        return
    index = index_of(plan, f"imagenet-{item.key}", item.part, item.number, **LOOKS[item.key])
    picture = scene(plan, f"imagenet-{item.key}", item.part, index, SIZES[item.number % len(SIZES)])
    first = len(imagenet_names()) + list(LOOKS).index(item.key) * VAL * plan.scenes if item.part == "val" else 0
    save_jpeg(root / _file(item.part, item.key, first + item.number), picture.image)


def finish(root: Path, plan: Plan, made: list[tuple[Item, None]]) -> None:
    """Nothing: what a picture is, its folder says."""


def others() -> list[str]:
    """The classes that no scene shows, in their order."""
    return [code for code in imagenet_names() if code not in LOOKS]


def _sheets(plan: Plan) -> int:
    """Scenes that the other classes' pictures are cut out of."""
    return 4 + 2 * plan.scenes


def _others(root: Path, plan: Plan, number: int) -> None:
    """A training and a test picture of every so-many-th of the other classes, windows of one scene."""
    sheet = scene(plan, "imagenet", "others", number, (160, 160)).image
    places = {code: place for place, code in enumerate(imagenet_names())}
    for place, code in list(enumerate(others()))[number :: _sheets(plan)]:
        rng = numpy_rng("layout imagenet", plan.seed, code)
        for part in ("train", "val"):
            top, left = rng.integers(160 - WINDOW, size=2)
            window = sheet[top : top + WINDOW, left : left + WINDOW]
            name = _file(part, code, 0 if part == "train" else places[code])
            save_bytes(root / name, _odd(window, place) if part == "train" else encode(window, "jpg"))


def _odd(pixels: np.ndarray, place: int) -> bytes:
    """A file's bytes; some of ImageNet's are grey, some CMYK, and one is a PNG in spite of its name."""
    if place == 2:
        return encode(pixels, "png")
    mode = {0: "L", 1: "CMYK"}.get(place, "RGB")
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _file(part: str, code: str, number: int) -> str:
    name = f"{code}_{number}" if part == "train" else f"ILSVRC2012_val_{number + 1:08d}"
    return f"{part}/{code}/{name}.JPEG"
