"""Picture files, folders of them and tar shards → batches of images, every one cropped to the same size."""

from __future__ import annotations

import glob
import io
import itertools
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.features import Size

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
BATCH = 16

Encoded = tuple[str, Callable[[], bytes]]  # a picture's name, and what reads its file


@dataclass
class Batch:
    """Some pictures at one size, as the trainer's batches."""

    images: dict[Size, Tensor]  # B×3×H×W uint8

    def float(self, size: Size) -> Tensor:
        """B×3×H×W in [0, 1]."""
        return self.images[size].float() / 255


def files(paths: Sequence[str | Path]) -> list[Path]:
    """The files among `paths`, and the pictures in the folders among them, in order."""
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"no picture at {path}", expected="picture files, or folders of them")
    return found


def from_folder(folder: Path | str) -> Iterator[Encoded]:
    """The pictures in a folder."""
    for file in files([folder]):
        yield str(file), file.read_bytes


def from_shards(shards: str | Sequence[str]) -> Iterator[Encoded]:
    """The pictures in tar shards, in order: paths, globs, brace ranges, and the addresses that webdataset opens."""
    from webdataset import WebDataset

    for shard in resolve([shards] if isinstance(shards, str) else shards):
        try:
            for sample in WebDataset(shard, shardshuffle=False, empty_check=False):
                ending = next((key for key in sample if f".{key.lower()}" in ENDINGS), None)
                if ending:
                    yield f"{shard}: {sample['__key__']}", lambda data=sample[ending]: data
        except (OSError, ValueError, EOFError, tarfile.TarError) as error:
            reason = error.args[0] if error.args else type(error).__name__  # webdataset adds the file to the arguments
            raise UserError(f"the shard {shard} cannot be read: {reason}", expected="a tar of pictures") from error


def resolve(patterns: Sequence[str]) -> list[str]:
    """Every shard that the patterns name; `UserError` where one names none."""
    from braceexpand import braceexpand

    found = []
    for name in (name for pattern in patterns for name in braceexpand(str(pattern))):
        matches = [name] if ":" in name else sorted(glob.glob(str(Path(name).expanduser()), recursive=True))
        if not matches:
            raise UserError(
                f"no shard matches '{name}'",
                expected="tar files of pictures",
                todo="--shards SHARDS or --pictures FOLDER   (other held-out pictures)",
            )
        found += matches
    return found


def batches(pictures: Iterator[Encoded], size: Size, count: int, batch: int = BATCH) -> Iterator[Batch]:
    """The first `count` pictures that can be read, at `size`; the last batch may be smaller.

    Those that cannot be read are named on stderr; `UserError` where none can.
    """
    images = itertools.islice(_readable(pictures, size), count)
    first = True
    while held := list(itertools.islice(images, batch)):
        yield Batch({size: torch.stack(held)})
        first = False
    if first:
        raise UserError("no picture could be read", expected="pictures: " + ", ".join(sorted(ENDINGS)))


def _readable(pictures: Iterator[Encoded], size: Size) -> Iterator[Tensor]:
    from PIL import Image

    for name, read in pictures:
        try:
            with Image.open(io.BytesIO(read())) as opened:
                yield fitted(opened, size)
        except OSError as error:
            print(f"{name}: left out, it cannot be read ({error})", file=sys.stderr)


def fitted(picture: Image, size: Size) -> Tensor:
    """The middle of an upright picture at `size`: 3×H×W uint8."""
    import numpy as np
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(picture).convert("RGB")
    return torch.from_numpy(np.array(ImageOps.fit(upright, size[::-1], Image.Resampling.BICUBIC))).permute(2, 0, 1)
