"""Measures the loader: images a second from tar shards to uint8 views, beside the decoder alone and a plain pipeline.

And the cache of what teachers say: images a second that a teacher sees, that are seen and kept, that are found again.

    python benchmarks/loader.py            # a table
    python benchmarks/loader.py --json     # one object a line

`ms` is the time an image takes (the median of several stretches), with the first stretch, which starts processes and
fills the first block, left out. Pictures are JPEGs cut from photographs that scikit-image bundles.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from radio_distill.recipe import StreamConfig
from radio_distill.shards import ShardStream

CASES = {"384to224": (384, [(224, 224)]), "128to64and56": (128, [(64, 64), (56, 56)])}  # source pixels, view sizes
BATCH = 32


def make_shards(folder: Path, side: int, pictures: int, shards: int = 4) -> list[str]:
    """Tars of JPEGs (quality 90) of `side`×`side` pixels; returns their paths."""
    from skimage import data
    from webdataset import TarWriter

    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo()) for photo in (data.astronaut, data.coffee, data.chelsea, data.rocket)]
    paths = [str(folder / f"{side}-{shard:03d}.tar") for shard in range(shards)]
    for number, path in enumerate(paths):
        with TarWriter(path) as tar:
            for index in range(pictures // shards):
                photo = photos[index % len(photos)]
                edge = int(rng.integers(200, min(photo.size)))
                left, top = (int(rng.integers(length - edge + 1)) for length in photo.size)
                file = io.BytesIO()
                photo.resize((side, side), box=(left, top, left + edge, top + edge)).save(file, "JPEG", quality=90)
                tar.write({"__key__": f"{number}_{index:05d}", "jpg": file.getvalue(), "txt": "a photograph"})
    return paths


def ours(paths: list[str], sizes: Sequence[tuple[int, int]], workers: int) -> Iterator[int]:
    """Images of each batch of a `ShardStream`."""
    config = StreamConfig(shards=paths, batch=BATCH, size=sizes[0][0], workers=workers)
    with ShardStream(config, name="benchmark", seed=0, sizes=lambda index: sizes) as stream:
        for batch in stream:
            yield len(batch.keys)


def peer(paths: list[str], sizes: Sequence[tuple[int, int]], workers: int) -> Iterator[int]:
    """The usual pipeline: webdataset's shuffle and decode, torchvision's random crop, another crop for every size."""
    import webdataset as wds
    from torchvision.transforms import v2

    views = [
        v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True)]) for size in sizes
    ]
    rows = wds.WebDataset(paths, resampled=True, shardshuffle=False).shuffle(1000).decode("pil").to_tuple("jpg")
    rows = rows.map_tuple(lambda picture: [view(picture) for view in views])
    loader = torch.utils.data.DataLoader(rows, batch_size=BATCH, num_workers=workers)
    for ((first, *_),) in loader:
        yield len(first)


def decoder(paths: list[str], sizes: Sequence[tuple[int, int]], workers: int) -> Iterator[int]:
    """Pillow alone, from memory: what no loader that uses it can pass in one process."""
    from radio_distill.tars import read

    pictures = [item.picture for path in paths for item in read(path)]
    while True:
        for start in range(0, len(pictures) - BATCH + 1, BATCH):
            for data in pictures[start : start + BATCH]:
                np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            yield BATCH


def cached(folder: Path, variant: str) -> Iterator[int]:
    """Pictures at 224 px to features of EfficientNet-Lite0: without the cache, with an empty one, with a filled one."""
    from radio_distill.teacher_cache import TeacherCache
    from teachers.catalogue import build

    encoder, images = build("lite0"), torch.rand(BATCH, 3, 224, 224)
    cache = TeacherCache(folder / variant, max_gib=1)
    for number in itertools.count():
        keys = [f"{number if variant == 'cache_empty' else 0} {row}" for row in range(BATCH)]
        if variant == "no_cache":
            encoder(images)
        else:
            cache.features(encoder, images, keys)
        yield BATCH


def measure(rows: Iterator[int], stretches: int, seconds: float) -> float:
    """Milliseconds an image: the median over stretches, after one that does not count."""
    times = []
    for _ in range(stretches + 1):
        began, images = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            images += next(rows)
        times.append(1000 * (time.perf_counter() - began) / images)
    rows.close()
    return median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--pictures", type=int, default=2000, help="in the shards")
    parser.add_argument("--stretches", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="a stretch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    variants: dict[str, tuple[Callable[..., Iterator[int]], int]] = {
        "decoder": (decoder, 0),
        "webdataset": (peer, 0),
        "webdataset_workers2": (peer, 2),
        "default": (ours, 0),
        "workers1": (ours, 1),
        "workers2": (ours, 2),
    }
    with tempfile.TemporaryDirectory() as folder:
        for case, (side, sizes) in CASES.items():
            paths = make_shards(Path(folder), side, options.pictures)
            size = sum(Path(path).stat().st_size for path in paths) // options.pictures
            for name, (rows, workers) in variants.items():
                ms = measure(rows(paths, sizes, workers), options.stretches, options.seconds)
                show(case, name, ms, side, size, workers, options.json)
        for name in ("no_cache", "cache_empty", "cache_full"):
            ms = measure(cached(Path(folder), name), options.stretches, options.seconds)
            show("lite0at224", name, ms, 224, 2 * (14 * 14 * 112 + 1280), 0, options.json)


def show(case: str, name: str, ms: float, side: int, size: int, workers: int, as_json: bool) -> None:
    """Print one measurement; `size`: bytes an image in its shard or in the cache."""
    row = {
        "variant": name, "case": case, "channels": 3, "height": side, "width": side, "workers": workers,
        "ms": round(ms, 4), "images_per_s": round(1000 / ms, 1), "bytes": size, "device": "cpu",
    }  # fmt: skip
    line = f"{case:14s} {name:20s} {row['images_per_s']:8.0f} images/s"
    print(json.dumps(row) if as_json else line, flush=True)


if __name__ == "__main__":
    main()
