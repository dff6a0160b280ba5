"""Scenes → WebDataset tars (picture, caption, labels), the same bytes whatever the number of workers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import numpy as np
from PIL import Image

from eval.tabletop.render import Scene, render

_LOOKS = ("kind", "colour", "material", "size")


def _end_with_parent() -> None:
    """A worker of a killed command would go on for ever: watch the parent and end with it."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def in_processes(work: Callable, items: Iterable, workers: int, description: str) -> Iterator:
    """`work` of each item, in whatever order they end, under a progress bar; with 0 workers in this process."""
    from rich.progress import track

    items = list(items)
    if workers == 0:
        yield from (work(item) for item in track(items, description=description))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        pending = [pool.submit(work, item) for item in items]
        for done in track(as_completed(pending), description=description, total=len(items)):
            yield done.result()


def labels(scene: Scene) -> dict:
    """What a sample's json says: its labels, and which scene it is (so that every other label can be rendered)."""
    return {
        "class": scene.label,
        "kind": scene.kind,
        "captions": scene.captions,
        "boxes": scene.boxes.tolist(),
        "things": [{key: getattr(thing, key) for key in _LOOKS} for thing in scene.things],
        **{key: getattr(scene, key) for key in ("seed", "split", "index", "view")},
    }


def encode(image: np.ndarray, picture_format: str) -> bytes:
    """H×W×3 uint8 → a JPEG (quality 95) or PNG file's bytes."""
    buffer = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if picture_format == "jpg" else {}
    Image.fromarray(image).save(buffer, {"jpg": "JPEG", "png": "PNG"}[picture_format], **options)
    return buffer.getvalue()


def members(scene: Scene, picture_format: str) -> Iterator[tuple[str, bytes]]:
    """A sample's files: (name in the tar, contents)."""
    key = f"{scene.split}-{scene.seed}-{scene.index:08d}"
    yield f"{key}.{picture_format}", encode(scene.image, picture_format)
    yield f"{key}.txt", scene.captions[0].encode()
    yield f"{key}.json", json.dumps(labels(scene)).encode()


def _write_shard(
    number: int, *, out: Path, scenes: int, per_shard: int, seed: int, split: str, size: int, picture_format: str
) -> Path:
    path = out / f"{split}-{number:05d}.tar"
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(number * per_shard, min((number + 1) * per_shard, scenes)):
                for name, contents in members(render(seed, split, index, size), picture_format):
                    entry = tarfile.TarInfo(name)  # no owner, no time: the bytes depend on the scenes alone
                    entry.size = len(contents)
                    tar.addfile(entry, io.BytesIO(contents))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write(
    out: Path, scenes: int, seed: int, *, size: int = 128, split: str = "train", per_shard: int = 250,
    picture_format: str = "jpg", workers: int = 0,
) -> list[Path]:  # fmt: skip
    """Render scenes 0 to `scenes` of a seed and split into `OUT/SPLIT-00000.tar`, ...; returns the tars, in order.

    A tar appears under its name only when it is whole, so a run that was cut short is repaired by the same command.
    """
    out.mkdir(parents=True, exist_ok=True)
    work = partial(
        _write_shard, out=out, scenes=scenes, per_shard=per_shard, seed=seed, split=split, size=size,
        picture_format=picture_format,
    )  # fmt: skip
    return sorted(in_processes(work, range(-(-scenes // per_shard)), workers, "rendering shards"))


def _render_block(block: range, seed: int, split: str, size: int) -> tuple[int, np.ndarray, list[dict]]:
    scenes = [render(seed, split, index, size) for index in block]
    return block.start, np.stack([scene.image for scene in scenes]), [labels(scene) for scene in scenes]


def _collect(seed: int, split: str, scenes: int, size: int, workers: int) -> tuple[np.ndarray, list[dict]]:
    images, truths = np.empty((scenes, size, size, 3), np.uint8), [{}] * scenes
    blocks = [range(start, min(start + 100, scenes)) for start in range(0, scenes, 100)]
    work = partial(_render_block, seed=seed, split=split, size=size)
    for start, some, said in in_processes(work, blocks, workers, f"rendering {split}"):
        images[start : start + len(some)], truths[start : start + len(some)] = some, said
    return images, truths


def collect(
    seed: int, split: str, scenes: int, *, size: int = 128, workers: int = 0, keep_in: Path | None = None
) -> tuple[np.ndarray, list[dict]]:
    """Pictures `N×H×W×3` uint8 and the `labels` of scenes 0 to N.

    With `keep_in`, a folder, they are kept there and found again (under a name that changes with the renderer).
    """
    if keep_in is None:
        return _collect(seed, split, scenes, size, workers)
    probe = hashlib.sha256()
    for index in range(12):
        scene = render(seed, split, index, size)
        probe.update(scene.image.tobytes() + repr(labels(scene)).encode())
    stem = f"{split}-{seed}-{scenes}x{size}-{probe.hexdigest()[:12]}"
    pictures, said = keep_in / f"{stem}.npy", keep_in / f"{stem}.json"
    if not said.exists():
        images, truths = _collect(seed, split, scenes, size, workers)
        keep_in.mkdir(parents=True, exist_ok=True)
        part = keep_in / f".{stem}.{os.getpid()}.npy"
        np.save(part, images)
        os.replace(part, pictures)
        part.write_text(json.dumps(truths))
        os.replace(part, said)
    return np.load(pictures, mmap_mode="r"), json.loads(said.read_text())
