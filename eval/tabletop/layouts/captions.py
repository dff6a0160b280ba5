"""Scenes → pictures with Karpathy's split files: COCO 2014 (`dataset_coco.json`) and Flickr30k."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from eval.tabletop.layouts.common import Item, Plan, parts_of, save_jpeg, save_json, scene
from eval.tabletop.render import Scene

SIZE = (120, 160)


class Captions(NamedTuple):
    """One of the two data sets."""

    FOLDER: str
    name: str  # coco, flickr30k: of its file

    def items(self, plan: Plan) -> list[Item]:
        few = (("train", 4), ("restval", 2), ("val", 2)) if self.name == "coco" else (("train", 4), ("val", 2))
        return parts_of(*few, ("test", 2 * plan.scenes))

    def scene_of(self, plan: Plan, item: Item) -> Scene:
        return scene(plan, self.name, item.part, item.number, SIZE)

    def place(self, item: Item) -> dict[str, Any]:
        """What the file says of where a picture is."""
        number = 9 + 131 * item.number + {"train": 1, "restval": 2, "val": 3, "test": 4}[item.part]
        if self.name == "flickr30k":
            return {"filename": f"{1000092795 + number}.jpg"}
        folder = "train2014" if item.part == "train" else "val2014"  # validation and test are parts of val2014
        return {"filepath": folder, "filename": f"COCO_{folder}_{number:012d}.jpg", "cocoid": number}

    def render(self, root: Path, plan: Plan, item: Item) -> list[str]:
        """Writes the picture; returns its captions."""
        found, place = self.scene_of(plan, item), self.place(item)
        folder = root / place.get("filepath", "flickr30k-images")
        save_jpeg(folder / place["filename"], found.image)
        return found.captions[:5]

    def finish(self, root: Path, plan: Plan, made: list[tuple[Item, list[str]]]) -> None:
        images = []
        for number, (item, texts) in enumerate(made):
            said = [
                {"tokens": re.findall(r"\w+", text), "raw": f"{text.capitalize()}.", "imgid": number, "sentid": place}
                for place, text in enumerate(texts, start=5 * number)
            ]
            about = {"sentids": [one["sentid"] for one in said], "imgid": number, "split": item.part, "sentences": said}
            images.append(self.place(item) | about)
        save_json(root / f"dataset_{self.name}.json", {"images": images, "dataset": self.name})


coco2014 = Captions("coco2014", "coco")
flickr30k = Captions("flickr30k", "flickr30k")
