"""Turns an encoded picture into views: one crop of it at every size that the teachers and the student ask for.

Pictures are C×H×W uint8 RGB until `Batch.float`. A crop is chosen before decoding, in pixels of the upright picture.
A letterboxed view keeps the crop's aspect: it lies at the top left, and the rest of the view is 0.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from teachers.errors import UserError
from teachers.features import Size

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000  # more than this in one picture is a decompression bomb, not a photograph
ASPECT_TOLERANCE = 0.05  # how far (in log aspect) the sizes of a batch may differ before a crop would be squashed
_ORIENTATION = 0x0112  # the EXIF tag


class BadPicture(Exception):
    """A picture that cannot be decoded, and why."""


class TooSmall(Exception):
    """A picture with a side below the stream's `min_side`: left out, but nothing is wrong with it."""


class Crop(NamedTuple):
    """A box in pixels, mirrored or not."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


@dataclass
class Batch:
    """What a stream yields: B samples, the same crop of each at every size."""

    images: dict[Size, Tensor]  # B×3×H×W uint8
    keys: list[str]
    stream: str
    index: int  # number of the batch in its stream, from 0
    skipped: dict[str, list[str]] = field(default_factory=dict)  # shard → why samples of it were passed over
    too_small: int = 0  # samples passed over for `min_side`
    position: dict[str, Any] = field(default_factory=dict)  # of the stream, after this batch
    crops: list[str] = field(default_factory=list)  # a sample each: all that decides its pixels at a given size
    extents: Tensor = None  # B×2 float32: share of the height and of the width that is picture; 1 without letterbox

    def __post_init__(self) -> None:
        if self.extents is None:
            self.extents = torch.ones(len(next(iter(self.images.values()))), 2)

    def float(self, size: Size, device: torch.device | str | None = None) -> Tensor:
        """Images of one size, `B×3×H×W` float32 in [0, 1], moved to `device` as bytes where one is given."""
        return self.images[size].to(device=device, non_blocking=True).to(torch.float32).div_(255)


def check_sizes(sizes: Sequence[Size], where: str) -> None:
    """Raise `UserError` unless one crop suits every size."""
    height, width = sizes[0]
    for other in sizes[1:]:
        if abs(math.log(width * other[0] / (height * other[1]))) > ASPECT_TOLERANCE:
            raise UserError(
                f"{where}: one crop cannot be both {height}×{width} and {other[0]}×{other[1]}",
                expected="sizes of one aspect for the student and every teacher (height : width)",
            )


def random_crop(
    size: Size, aspect: float, scale: Sequence[float], ratio: Sequence[float], flip: bool, rng: np.random.Generator
) -> Crop:
    """A box of `scale` (share of the area) and of `aspect` (width / height) times a factor in `ratio`, uniform in log.

    Where no such box fits, as in a panorama, the largest of the wanted aspect, at a random place.
    """
    height, width = size
    mirrored = bool(rng.random() < 0.5) and flip
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        shape = aspect * math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < h <= height and 0 < w <= width:
            break
    else:
        h, w = _largest(size, aspect)
    return Crop(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w, mirrored)


def centre_crop(size: Size, aspect: float) -> Crop:
    """The largest box of `aspect` (width / height) in the middle."""
    height, width = size
    h, w = _largest(size, aspect)
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def _largest(size: Size, aspect: float) -> Size:
    height, width = size
    return min(height, max(1, round(width / aspect))), min(width, max(1, round(height * aspect)))


def open_picture(data: bytes) -> tuple[Image.Image, Size]:
    """An encoded picture, its header read and its pixels not yet, and its size when upright; or `BadPicture`."""
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(data))
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise _undecodable(error) from error
    width, height = picture.size if orientation(picture) < 5 else picture.size[::-1]
    if width * height > MAX_PIXELS:
        raise BadPicture(f"has {width}×{height} pixels, more than a picture may have ({MAX_PIXELS})")
    return picture, (height, width)


def load(picture: Image.Image) -> Image.Image:
    """Decode the pixels of an opened picture and turn it upright; or `BadPicture`."""
    from PIL import ImageOps

    try:
        picture.load()
        return ImageOps.exif_transpose(picture) if orientation(picture) != 1 else picture
    except Exception as error:
        raise _undecodable(error) from error


def _undecodable(error: Exception) -> BadPicture:
    # Pillow's own words for "no plugin knows this" name an object's address
    text = "is not a picture" if "cannot identify image" in str(error) else " ".join(str(error).split())
    return BadPicture(f"cannot be decoded: {text or type(error).__name__}")


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none; 5 to 8 swap height and width."""
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # a picture whose metadata alone is damaged is still a good picture
        return 1
    return value if value in range(1, 9) else 1


class Placed(NamedTuple):
    """What `render` took of a picture, and how much of its views that fills."""

    text: str  # names the picture's bytes, the crop, and how it was decoded and placed: equal texts, equal pixels
    extent: tuple[float, float]  # share of the height and of the width


def render(
    data: bytes,
    choose: Callable[[Size], Crop],
    out: dict[Size, Tensor],
    row: int,
    min_side: int = 0,
    letterbox: bool = False,
) -> Placed:
    """Decode a picture once and write the crop that `choose` takes of its size into `out[size][row]` for every size.

    With `letterbox` the crop keeps its aspect and fills the share of every view that it fills of the first size.
    Raises `BadPicture` or `TooSmall`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow tells of odd metadata on the console, once a picture
        picture, declared = open_picture(data)
        if min(declared) < min_side:
            raise TooSmall(f"{declared[1]}×{declared[0]}")
        crop = choose(declared)
        extent = fitted((crop.height, crop.width), next(iter(out))) if letterbox else (1.0, 1.0)
        filled = {size: tuple(max(1, round(side * share)) for side, share in zip(size, extent)) for size in out}
        _shrink_on_load(picture, min(min(crop.height / h, crop.width / w) for h, w in filled.values()))
        pixels = torch.from_numpy(np.array(to_rgb(load(picture)))).permute(2, 0, 1)
    decoded = (pixels.shape[1], pixels.shape[2])
    box = _scaled(crop, declared, decoded)
    part = pixels[:, box.top : box.top + box.height, box.left : box.left + box.width]
    for size, images in out.items():
        height, width = filled[size]
        view = resize(part, (height, width))
        if (height, width) != size:
            images[row].zero_()
        images[row, :, :height, :width] = view.flip(2) if crop.flip else view
    return Placed(_named(data, box, decoded, extent), extent)


def fitted(picture: Size, size: Size) -> tuple[float, float]:
    """The share of `size`'s height and width that `picture` fills when it is enlarged or shrunk to fit inside."""
    scale = min(size[0] / picture[0], size[1] / picture[1])
    return min(1.0, picture[0] * scale / size[0]), min(1.0, picture[1] * scale / size[1])


def _named(data: bytes, box: Crop, decoded: Size, extent: tuple[float, float]) -> str:
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    # Large pictures are decoded smaller where no view needs all pixels, so the decoded size belongs to the name.
    text = f"{digest} {box.height}×{box.width}+{box.top}+{box.left} of {decoded[0]}×{decoded[1]}"
    placed = "" if extent == (1.0, 1.0) else f" fills {extent[0]:.6f}×{extent[1]:.6f}"
    return f"{text}{' mirrored' if box.flip else ''}{placed}"


def resize(picture: Tensor, size: Size) -> Tensor:
    """`C×H×W` uint8 → `C×size` uint8: bicubic, antialiased where it shrinks."""
    if picture.shape[1:] == size:
        return picture
    # What torchvision's resize calls on uint8, without its 20 µs of dispatch.
    return F.interpolate(picture[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0]


def _shrink_on_load(picture: Image.Image, excess: float) -> None:
    """Let libjpeg decode at 1/2, 1/4 or 1/8 where the crop still keeps twice the pixels that the views need."""
    factor = next((factor for factor in (8, 4, 2) if excess / factor >= 2), 1)
    if factor > 1:
        picture.draft(None, (picture.size[0] // factor, picture.size[1] // factor))


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any picture in RGB: 16-bit greys scaled to 8, transparency laid on white, palettes and CMYK converted."""
    from PIL import Image

    if picture.mode == "RGB":
        return picture if "transparency" not in picture.info else _on_white(picture.convert("RGBA"))
    if picture.mode.startswith("I"):  # Pillow's own conversion clips 16 bits at 255
        grey = np.clip(np.asarray(picture).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if picture.mode == "F":
        raise BadPicture("has floating-point pixels, whose range nobody knows")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        return _on_white(picture.convert("RGBA"))
    return picture.convert("RGB")


def _on_white(picture: Image.Image) -> Image.Image:
    from PIL import Image

    ground = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(ground, picture).convert("RGB")


def _scaled(crop: Crop, declared: Size, decoded: Size) -> Crop:
    """A box in the declared picture → the same box in the decoded one, which may be smaller."""
    if declared == decoded:
        return crop
    y, x = decoded[0] / declared[0], decoded[1] / declared[1]
    top, left = min(int(crop.top * y), decoded[0] - 1), min(int(crop.left * x), decoded[1] - 1)
    height = max(1, min(round(crop.height * y), decoded[0] - top))
    return Crop(top, left, height, max(1, min(round(crop.width * x), decoded[1] - left)), crop.flip)
