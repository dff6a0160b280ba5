"""Karpathy's splits (`dataset_coco.json`, `dataset_flickr30k.json`) and their pictures → pictures with captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from eval.datasets.split import Split, choose, contents_identity, files_identity, find_root, read_image
from teachers.errors import UserError
from teachers.section import Section

LAYOUT = (
    "a dataset_NAME.json of Karpathy's and the pictures that it names: flickr30k-images/*.jpg (images: "
    "flickr30k-images), or COCO's train2014/*.jpg and val2014/*.jpg"
)
EXPECTED = "images: [{filename, filepath (COCO), split, sentences: [{raw}, ...]}, ...]"
Part = Literal["train", "restval", "val", "test"]


class Config(Section):
    """Pictures with several captions each, split as Karpathy did: COCO 5k and Flickr30k 1k are its test parts."""

    kind: Literal["karpathy_captions"]
    path: str = Field(description="its folder, below data_root")
    annotations: str = Field(
        "dataset_coco.json", description="the file of captions and splits, in the folder: or dataset_flickr30k.json"
    )
    images: str = Field("", description="folder of the pictures, in the folder; Flickr30k: flickr30k-images")
    train: Annotated[list[Part], Field(min_length=1)] = Field(
        ["train"], description="parts to learn from; COCO: often with restval"
    )
    val: Annotated[list[Part], Field(min_length=1)] = Field(["test"], description="parts to be judged on")
    captions: Annotated[int, Field(ge=1)] = Field(5, description="captions used of each picture, the first ones")
    train_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="use so many pictures, drawn once")
    val_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="the same of the test pictures")
    get: str = Field(
        "the splits are at https://cs.stanford.edu/people/karpathy/deepimagesent (caption_datasets.zip), pictures at "
        "https://cocodataset.org (2014) and https://shannon.cs.illinois.edu/DenotationGraph (Flickr30k)",
        description="where to get it",
    )


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part, in the file's order; all of its pictures must be there, and have captions."""
    root = find_root(data_root, config.path, LAYOUT, config.get)
    wanted, limit = (config.train, config.train_limit) if part == "train" else (config.val, config.val_limit)
    rows = _read(root / config.annotations, wanted)
    rows = [rows[index] for index in choose(len(rows), limit, name, part)]
    files = [root / config.images / file for file, _ in rows]
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise UserError(f"{len(absent)} pictures with captions are not there, such as {absent[0]}", expected=LAYOUT)
    texts = [captions[: config.captions] for _, captions in rows]
    return Split(
        data=name, part=part, count=len(files), source=f"{root} ({config.annotations}, {' + '.join(wanted)})",
        identity=files_identity(files, root), truth_identity=contents_identity([root / config.annotations], root),
        image=lambda index: read_image(files[index]),
        captions=lambda index: texts[index],
    )  # fmt: skip


def _read(path: Path, wanted: list[str]) -> list[tuple[str, list[str]]]:
    """(file below the picture folder, its captions) of every picture of the `wanted` parts."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = [(_file(image), _captions(image)) for image in document["images"] if image["split"] in wanted]
        has = sorted({image["split"] for image in document["images"]})
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", expected=LAYOUT) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # damaged JSON is a ValueError
        what = f"{path} is not a file of Karpathy's splits: {type(error).__name__} {error}"
        raise UserError(what, expected=EXPECTED) from None
    if not rows:
        raise UserError(f"{path} has no pictures of {' or '.join(wanted)}", expected=f"one of {', '.join(has)}")
    mute = [file for file, captions in rows if not captions]
    if mute:
        raise UserError(f"{path}: {len(mute)} pictures have no caption, such as {mute[0]}", expected=EXPECTED)
    return rows


def _file(image: dict[str, Any]) -> str:
    return str(Path(image.get("filepath", "")) / image["filename"])


def _captions(image: dict[str, Any]) -> list[str]:
    """The raw sentences, on one line each; blank ones say nothing."""
    captions = [" ".join(sentence["raw"].split()) for sentence in image["sentences"]]
    return [caption for caption in captions if caption]
