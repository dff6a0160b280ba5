"""COCO layout: `val2017/*.jpg`, `annotations/captions_val2017.json` → pictures with captions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from eval.datasets.coco_layout import CocoConfig, find_part, layout
from eval.datasets.split import Split, choose, files_identity, read_image
from teachers.errors import UserError

LAYOUT = layout("captions")
EXPECTED = "images: [{id, file_name}], annotations: [{id, image_id, caption}]"


class Config(CocoConfig):
    """Pictures with several captions each."""

    kind: Literal["coco_captions"]
    captions: Annotated[int, Field(ge=1)] = Field(5, description="captions used of each picture, the first ones")


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part: the pictures that have captions, in the order of their ids."""
    found = find_part(config, data_root, part, "captions")
    captions = found.parse(_pairs, EXPECTED)
    if not captions:
        raise UserError(f"{found.annotations} holds no captions", expected=EXPECTED)
    chosen = [captions[index] for index in choose(len(captions), found.limit, name, part)]
    files = found.pictures([file for file, _ in chosen])
    texts = [words[: config.captions] for _, words in chosen]
    return Split(
        data=name, part=part, count=len(files), source=f"{found.root} ({found.folder})",
        identity=files_identity(files, found.root), truth_identity=found.identity,
        image=lambda index: read_image(files[index]), captions=lambda index: texts[index],
    )  # fmt: skip


def _pairs(document: Any) -> list[tuple[str, list[str]]]:
    """(file, its captions in the order of their ids) of every picture that has any."""
    names = {image["id"]: image["file_name"] for image in document["images"]}
    captions: dict[int, list[str]] = {}
    for note in sorted(document["annotations"], key=lambda note: note["id"]):
        if words := note["caption"].split():  # a blank one says nothing
            captions.setdefault(note["image_id"], []).append(" ".join(words))
    return [(names[key], captions[key]) for key in sorted(captions)]
