"""Makes small tar shards of synthetic pictures, and breaks them, for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = Path(__file__).parents[2].parent / "shared" / "data" / "photos"


def encoded(picture: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """A picture as a file's bytes."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def jpeg(number: int, width: int = 48, height: int = 40) -> bytes:
    """A smooth picture whose colours depend on its number."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return encoded(small.resize((width, height), Image.Resampling.BICUBIC), quality=90)


def write_tar(path: Path, members: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> Path:
    """A tar of (name, contents)."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def write_shards(folder: Path, shards: int, samples: int, **size: int) -> str:
    """`shards` tars of `samples` pictures each, keys `000`, `001`, ... across them; returns the recipe's pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        numbers = range(shard * samples, (shard + 1) * samples)
        write_tar(folder / f"s-{shard:02d}.tar", {f"{number:03d}.jpg": jpeg(number, **size) for number in numbers})
    return str(folder / f"s-{{00..{shards - 1:02d}}}.tar")
