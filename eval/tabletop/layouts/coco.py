"""Scenes → COCO 2017: pictures, `instances_*.json` with polygons and run lengths, `captions_*.json`.

As in the real files: category ids have gaps, most categories occur nowhere, some pictures have no annotation, a crowd
is one annotation of many things, and a training box has no area.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from eval.tabletop.kinds import KINDS
from eval.tabletop.layout import draw
from eval.tabletop.layouts.common import Item, Plan, parts_of, polygons, save_jpeg, save_json, scene, split_of
from eval.tabletop.render import Scene

FOLDER = "coco"
SIZES = ((240, 320), (320, 240))  # published: 640 on the longer side
# Of the kinds: sports ball, suitcase, bottle, cake, donut, sandwich, umbrella, toothbrush (the last), person, airplane.
CATEGORIES = (37, 33, 44, 61, 60, 54, 28, 90, 1, 5)
CROWDED, EMPTY, FLAT = 1, 2, 3  # numbers of pictures: things as one crowd, nothing annotated, a box without area


def items(plan: Plan) -> list[Item]:
    return parts_of(("train2017", plan.scenes), ("val2017", plan.scenes))


def scene_of(plan: Plan, item: Item) -> Scene:
    index = item.number
    if item.number % 8 == CROWDED:  # one with enough things for a crowd
        index = next(i for i in itertools.count(1000 * item.number) if _things(plan, item.part, i) > 2)
    return scene(plan, "coco", item.part, index, SIZES[item.number % len(SIZES)])


def id_of(item: Item) -> int:
    """A picture's id; a file's name is it with twelve digits."""
    return 139 + 577 * item.number + (9 if item.part == "train2017" else 0)


def render(root: Path, plan: Plan, item: Item) -> dict[str, Any]:
    """Writes the picture; returns its entry, annotations and captions."""
    found = scene_of(plan, item)
    name, (height, width) = f"{id_of(item):012d}.jpg", found.image.shape[:2]
    save_jpeg(root / item.part / name, found.image)
    entry = {
        "license": 1, "file_name": name, "coco_url": f"http://images.cocodataset.org/{item.part}/{name}",
        "height": height, "width": width, "date_captured": "2013-11-14 00:00:00", "flickr_url": "", "id": id_of(item),
    }  # fmt: skip
    return {"image": entry, "things": annotations(item, found), "captions": found.captions[:5]}


def annotations(item: Item, found: Scene) -> list[dict[str, Any]]:
    """A picture's annotations, without their ids."""
    if item.number % 8 == EMPTY:
        return []
    masks = [found.instances == number for number in range(1, len(found.things) + 1)]
    kinds = [CATEGORIES[KINDS.index(thing.kind)] for thing in found.things]
    if item.number % 8 == CROWDED:  # the main thing, and all others in a heap
        things = [_thing(item, masks[0], kinds[0]), _crowd(item, np.any(masks[1:], axis=0), kinds[1])]
    else:
        things = [_thing(item, mask, kind) for mask, kind in zip(masks, kinds) if mask.any()]
    if item.part == "train2017" and item.number % 8 == FLAT:
        things.append(things[0] | {"bbox": [*things[0]["bbox"][:3], 0.0], "area": 0.0})
    return things


def finish(root: Path, plan: Plan, made: list[tuple[Item, dict[str, Any]]]) -> None:
    for part in ("train2017", "val2017"):
        own = [(item, found) for item, found in made if item.part == part]
        head: dict[str, Any] = {"info": {"description": "Rendered, in the layout of COCO 2017"}}
        head["licenses"] = [{"id": 1, "name": "none", "url": ""}]
        head["images"] = [found["image"] for _, found in own[::-1]]  # COCO's files are in no order
        things = [thing for _, found in own for thing in found["things"]]
        things = [thing | {"id": 200000 + 13 * number} for number, thing in enumerate(things)]
        texts = [(id_of(item), text) for item, found in own for text in found["captions"]]
        said = [{"image_id": image, "id": 37 + 3 * n, "caption": text} for n, (image, text) in enumerate(texts)]
        listed = head | {"annotations": things, "categories": names()}
        save_json(root / "annotations" / f"instances_{part}.json", listed)
        save_json(root / "annotations" / f"captions_{part}.json", head | {"annotations": said})


def names() -> list[dict[str, Any]]:
    """The 80 categories, as published, ids 1 to 90."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    listed = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # by id; no category is __background__ or N/A
    return [
        {"supercategory": "rendered", "id": number, "name": name}
        for number, name in enumerate(listed)
        if name not in ("__background__", "N/A")
    ]


def _things(plan: Plan, part: str, index: int) -> int:
    return len(draw(plan.seed, split_of("coco", part), index)[0].things)


def _thing(item: Item, mask: np.ndarray, category: int) -> dict[str, Any]:
    from pycocotools import mask as coded

    outlines = polygons(mask)
    runs = coded.merge(coded.frPyObjects(outlines, *mask.shape))
    return {
        "segmentation": outlines, "area": float(coded.area(runs)), "iscrowd": 0, "image_id": id_of(item),
        "bbox": _box(mask), "category_id": category,
    }  # fmt: skip


def _crowd(item: Item, mask: np.ndarray, category: int) -> dict[str, Any]:
    """Run lengths down the columns, beginning with what is not in it."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [~mask[-1, -1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], ends])).tolist()
    return {
        "segmentation": {"counts": counts, "size": list(mask.shape)}, "area": int(mask.sum()), "iscrowd": 1,
        "image_id": id_of(item), "bbox": _box(mask), "category_id": category,
    }  # fmt: skip


def _box(mask: np.ndarray) -> list[float]:
    """x, y, width, height."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    left, top = columns[0], rows[0]
    return [float(side) for side in (left, top, columns[-1] + 1 - left, rows[-1] + 1 - top)]
