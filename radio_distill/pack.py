"""Turns a folder of pictures into tar shards, with the captions and class folders it finds."""

from __future__ import annotations

import io
import itertools
import os
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

from radio_distill.captions import read_captions
from radio_distill.tars import PICTURES
from radio_distill.views import BadPicture, load, open_picture, to_rgb
from teachers.errors import UserError
from teachers.features import Size


class Packed(NamedTuple):
    """What `pack` wrote."""

    train: list[Path]
    heldout: list[Path]
    pictures: int  # in train
    left_out: dict[str, str]  # picture → why


_Encoded = dict[str, Any] | tuple[str, str]  # a sample's members, or (the picture's name, what is wrong with it)


class _Found(NamedTuple):
    path: Path
    key: str
    label: int | None
    facts: dict[str, Any]
    captions: list[str]


def pack(
    folder: str | Path,
    out: str | Path,
    *,
    per_shard: int = 1000,
    captions: str | Path | None = None,
    holdout: int = 0,
    max_side: int | None = None,
    workers: int = 1,
    seed: int = 0,
    force: bool = False,
) -> Packed:
    """Shards `out/train-000000.tar`, ... of a folder's pictures in a seeded order; `holdout` of them in `heldout-*`.

    Everything is written under temporary names and renamed at the end. Pictures that cannot be decoded are left out.
    """
    folder, out = Path(folder).expanduser(), Path(out).expanduser()
    found = find(folder, read_captions(captions) if captions else {})
    if holdout >= len(found):
        raise UserError(f"--holdout {holdout} leaves none of the {len(found)} pictures in {folder} to train on")
    old = [path for kind in ("train", "heldout") for path in sorted(out.glob(f"{kind}-*.tar"))]
    if old and not force:
        raise UserError(f"{out} already holds {len(old)} shards ({old[0].name}, ...)", todo="another OUT, or --force")
    random.Random(seed).shuffle(found)
    out.mkdir(parents=True, exist_ok=True)
    left_out: dict[str, str] = {}
    samples = _good(_progress(_encode_all(found, max_side, workers), len(found)), left_out)
    written: list[Path] = []
    try:
        _write(samples, out, "heldout", per_shard, holdout, written)
        kept = _write(samples, out, "train", per_shard, None, written)
        if not kept:
            examples = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
            raise UserError(f"no picture in {folder} is left to train on: {examples or 'all were held out'}")
        for path in old:
            path.unlink()
        final = [path.with_suffix("") for path in written]
        for path, name in zip(written, final):
            os.replace(path, name)
    finally:
        for path in written:
            path.unlink(missing_ok=True)
    train = [path for path in final if path.name.startswith("train")]
    return Packed(train, [path for path in final if path not in train], kept, left_out)


def find(folder: Path, captions: dict[str, list[str]]) -> list[_Found]:
    """Pictures in `folder` and below in natural order, each with a key of its own, its class and its captions."""
    if not folder.is_dir():
        raise UserError(
            f"there is no folder '{folder}'", expected="a folder of pictures, or of class folders with pictures"
        )
    paths = sorted((path for path in folder.rglob("*") if _is_picture(path)), key=lambda path: _natural(path, folder))
    if not paths:
        raise UserError(f"{folder} and the folders in it hold no pictures", expected="." + " .".join(PICTURES))
    names = [path.relative_to(folder) for path in paths]
    folders = {name.parts[0] for name in names} if all(len(name.parts) > 1 for name in names) else set()
    classes = {name: number for number, name in enumerate(sorted(folders))} if len(folders) > 1 else {}
    found, keys, matched = [], set(), False
    for path, name in zip(paths, names):
        key = re.sub(r"[^\w-]+", "_", str(name.with_suffix("")))[-80:]
        while key in keys:  # a.jpg beside a.png
            key += "_"
        keys.add(key)
        label = classes.get(name.parts[0])
        facts = {"file": str(name)} | ({"class": name.parts[0]} if label is not None else {})
        named = next((captions[known] for known in _names_of(name) if known in captions), None)
        matched = matched or named is not None
        found.append(_Found(path, key, label, facts, _beside(path) if named is None else named))
    if captions and not matched:
        text = f"--captions names none of the pictures in {folder}"
        raise UserError(text, expected=f"names like '{names[0]}'; it has '{next(iter(captions))}'")
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix[1:].lower() in PICTURES and not path.name.startswith(".") and path.is_file()


def _natural(path: Path, folder: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", str(path.relative_to(folder)))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _names_of(name: Path) -> tuple[str, ...]:
    """What a captions file may call a picture."""
    return str(name), name.name, str(name.with_suffix("")), name.stem


def _beside(path: Path) -> list[str]:
    """The captions in the .txt file beside a picture, one a line."""
    text = path.with_suffix(".txt")
    lines = text.read_text(errors="replace").splitlines() if text.is_file() else []
    return [line for line in lines if line.strip()]


def _encode_all(found: Sequence[_Found], max_side: int | None, workers: int) -> Iterator[_Encoded]:
    """In order; Pillow decodes without holding Python's lock, so threads do."""
    encode, rest = partial(_encode, max_side=max_side), iter(found)
    with ThreadPool(max(1, workers)) as pool:
        # A stretch at a time: the pool would otherwise run ahead of a slow disk and fill the memory.
        while stretch := list(itertools.islice(rest, 32 * max(1, workers))):
            yield from pool.map(encode, stretch)


def _encode(picture: _Found, max_side: int | None) -> _Encoded:
    try:
        data, suffix, (height, width) = _checked(picture.path.read_bytes(), picture.path.suffix[1:].lower(), max_side)
    except (BadPicture, OSError) as error:
        return picture.facts["file"], str(error)
    sample = {"__key__": picture.key, suffix: data, "json": {**picture.facts, "height": height, "width": width}}
    if picture.label is not None:
        sample["cls"] = picture.label
    if picture.captions:
        sample["txt"] = picture.captions[0]
        sample["json"]["captions"] = picture.captions
    return sample


def _checked(data: bytes, suffix: str, max_side: int | None) -> tuple[bytes, str, Size]:
    """A picture's file, decoded whole to check it → (that file, or one shrunk to `max_side`; its suffix; its size)."""
    from PIL import Image

    picture, (height, width) = open_picture(data)
    if max_side is None or max(height, width) <= max_side:
        load(picture)
        return data, "jpg" if suffix == "jpeg" else suffix, (height, width)
    picture = to_rgb(load(picture))
    picture.thumbnail((max_side, max_side), resample=Image.Resampling.LANCZOS)
    suffix, options = ("png", {}) if suffix == "png" else ("jpg", {"quality": 95, "subsampling": 0})
    file = io.BytesIO()
    picture.save(file, {"png": "PNG", "jpg": "JPEG"}[suffix], **options)
    return file.getvalue(), suffix, (picture.height, picture.width)


def _good(samples: Iterable[_Encoded], left_out: dict[str, str]) -> Iterator[dict[str, Any]]:
    for sample in samples:
        if isinstance(sample, tuple):
            left_out[sample[0]] = sample[1]
        else:
            yield sample


def _write(
    samples: Iterator[dict[str, Any]], out: Path, kind: str, per_shard: int, limit: int | None, written: list[Path]
) -> int:
    """Write up to `limit` samples as `kind-*.tar.part`, naming each file in `written` before it is opened."""
    from webdataset.writer import TarWriter

    count = 0
    while limit is None or count < limit:
        these = itertools.islice(samples, per_shard if limit is None else min(per_shard, limit - count))
        first = next(these, None)
        if first is None:
            break
        written.append(out / f"{kind}-{count // per_shard:06d}.tar.part")
        with open(written[-1], "wb") as file, TarWriter(file, mtime=0, user="", group="", format="PAX_FORMAT") as tar:
            for sample in itertools.chain([first], these):
                tar.write(sample)
                count += 1
    return count


def _progress(rows: Iterable[Any], total: int) -> Iterator[Any]:
    from rich.progress import track

    return track(rows, "packing", total=total, transient=True, disable=not sys.stdout.isatty())


def brace(paths: Sequence[Path]) -> str:
    """Shards numbered in a row → the pattern that a recipe takes."""
    if len(paths) == 1:
        return str(paths[0])
    stem, first = str(paths[0])[: -len(".tar")].rsplit("-", 1)
    return f"{stem}-{{{first}..{len(paths) - 1:0{len(first)}d}}}.tar"
