"""Turns a captions file (COCO json, plain json, csv) into a dict: picture's name → captions."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from teachers.errors import UserError

_FILE_COLUMNS = ("file", "filename", "file_name", "filepath", "image", "image_name", "path", "name")
_TEXT_COLUMNS = ("caption", "captions", "text", "title", "comment", "sentence")
_EXPECTED = (
    "COCO captions (images, annotations), a json {picture: caption or captions}, "
    "or a csv with a column 'file' and a column 'caption'"
)


def read_captions(path: str | Path) -> dict[str, list[str]]:
    """Captions by the picture's name as the file has it: a path from the packed folder, a file name, or its stem."""
    path = Path(path).expanduser()
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            pairs = list(_csv(path))
        else:
            pairs = list(_json(json.loads(path.read_text())))
    except FileNotFoundError:
        raise UserError(f"there is no captions file '{path}'", expected=_EXPECTED) from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # ValueError: also json's and utf-8's
        raise UserError(f"cannot read captions from {path}: {error!r}", expected=_EXPECTED) from error
    captions: dict[str, list[str]] = {}
    for name, text in pairs:
        captions.setdefault(name, []).append(" ".join(text.split()))
    if not captions:
        raise UserError(f"{path} holds no captions", expected=_EXPECTED)
    return captions


def _json(content: Any) -> Iterable[tuple[str, str]]:
    if "annotations" in content:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        yield from ((names[note["image_id"]], note["caption"]) for note in content["annotations"])
        return
    for name, texts in content.items():
        yield from ((name, text) for text in ([texts] if isinstance(texts, str) else texts))


def _csv(path: Path) -> Iterable[tuple[str, str]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        file.seek(0)
        # Flickr30k separates by | and the web by tabs: whichever the first line has most of
        reader = csv.DictReader(file, delimiter=max(",\t|;", key=first.count), skipinitialspace=True)
        columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
        picture = next((columns[name] for name in _FILE_COLUMNS if name in columns), None)
        text = next((columns[name] for name in _TEXT_COLUMNS if name in columns), None)
        if picture is None or text is None:
            raise ValueError(f"its columns are {', '.join(columns)}")
        yield from ((row[picture].strip(), row[text]) for row in reader if row[text])
