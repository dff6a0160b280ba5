"""COCO layout: `val2017/*.jpg`, `annotations/captions_val2017.json` → pictures with captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from eval.datasets.split import Split, choose, files_identity, find_root, read_image
from radio_distill.documents import Section
from teachers.errors import UserError

LAYOUT = "val2017/*.jpg and annotations/captions_val2017.json (the same with train2017)"


class Config(Section):
    """Pictures with several captions each."""

    kind: Literal["coco_captions"]
    path: str = Field(description="its folder, below data_root")
    train: str = Field("train2017", description="folder of the training pictures; names the annotation file too")
    val: str = Field("val2017", description="folder of the test pictures; names the annotation file too")
    captions: Annotated[int, Field(ge=1)] = Field(5, description="captions used of each picture, the first ones")
    train_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="use so many pictures, drawn once")
    val_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="the same of the test pictures")
    get: str = Field("COCO 2017 is at https://cocodataset.org/#download", description="where to get it")


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part: the pictures that have captions, in the order of their ids."""
    root = find_root(data_root, config.path, LAYOUT, config.get)
    folder = config.train if part == "train" else config.val
    limit = config.train_limit if part == "train" else config.val_limit
    captions = _read(root / "annotations" / f"captions_{folder}.json")
    chosen = [captions[index] for index in choose(len(captions), limit, name, part)]
    files = [root / folder / file for file, _ in chosen]
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise UserError(f"{len(absent)} pictures with captions are not there, such as {absent[0]}", expected=LAYOUT)
    texts = [words[: config.captions] for _, words in chosen]
    return Split(
        data=name, part=part, count=len(files), source=f"{root} ({folder})",
        identity=files_identity(files, root), image=lambda index: read_image(files[index]),
        captions=lambda index: texts[index],
    )  # fmt: skip


def _read(path: Path) -> list[tuple[str, list[str]]]:
    """(file, its captions in the order of their ids) of every picture that has any."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in data["images"]}
        captions: dict[int, list[str]] = {}
        for note in sorted(data["annotations"], key=lambda note: note["id"]):
            captions.setdefault(note["image_id"], []).append(" ".join(note["caption"].split()))
        pairs = [(names[key], captions[key]) for key in sorted(captions)]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", expected=LAYOUT) from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a COCO caption file: {type(error).__name__} {error}",
            expected="images: [{id, file_name}], annotations: [{id, image_id, caption}]",
        ) from None
    if not pairs:
        raise UserError(f"{path} holds no captions", expected="annotations: [{id, image_id, caption}]")
    return pairs
