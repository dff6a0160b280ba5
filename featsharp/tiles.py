"""Cuts an image into f×f tiles, shows them to an encoder together with the whole, and joins what it answers.

Shapes: B images, f factor, H W = f times what the encoder sees at once, h w the grid of one encoder call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from teachers.features import Encoder, Features, Size


def cut(images: Tensor, factor: int) -> Tensor:
    """B×3×H×W → (B·f²)×3×(H/f)×(W/f), ordered by image, row, column."""
    return rearrange(images, "b c (i h) (j w) -> (b i j) c h w", i=factor, j=factor)


def stitch(maps: Tensor, factor: int) -> Tensor:
    """The inverse for feature maps: (B·f²)×C×h×w → B×C×(h·f)×(w·f)."""
    return rearrange(maps, "(b i j) c h w -> b c (i h) (j w)", i=factor, j=factor)


def shrink(images: Tensor, size: Size) -> Tensor:
    """Resize with an antialiasing filter; `images` themselves where they have that size."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def in_chunks(encoder: Encoder, images: Tensor, most: int | None) -> Features:
    """`encoder(images)` in calls of at most `most` images (None: one call)."""
    parts = [encoder(chunk) for chunk in images.split(most or max(1, len(images)))]
    if len(parts) == 1:
        return parts[0]
    summaries = [part.summary for part in parts]
    summary = None if summaries[0] is None else torch.cat(summaries)
    return Features(summary, torch.cat([part.spatial for part in parts]))


Tiled = Tensor | tuple[Tensor, ...] | None  # the stitched map of tiles; several, from coarse to fine; or none


def each(tiles: Tiled, change: Callable[[Tensor], Tensor]) -> Tiled:
    """`change` of every map of tiles there is."""
    if tiles is None:
        return None
    return tuple(map(change, tiles)) if isinstance(tiles, tuple) else change(tiles)


def look(
    encoder: Encoder,
    images: Tensor,
    factor: int,
    levels: Sequence[int],
    most: int | None = None,
    others: Tensor | None = None,
) -> tuple[Features, Tiled, Tensor | None]:
    """What the encoder sees in the shrunken images, in their tiles, and in `others` (images of its own size).

    `levels`: for each map of tiles that is asked for, into how many along each axis the image is cut. All in one
    encoder call, or in chunks of `most`. Returns the features of the whole, the stitched maps (one is no tuple; at 1
    tile it is the map of the whole: the encoder does not look twice), the map of the others.
    """
    b, _, height, width = images.shape
    size = (height // factor, width // factor)
    finer = [n for n in levels if n > 1]
    batch = [shrink(images, size)]
    batch += [cut(shrink(images, (n * size[0], n * size[1])), n) for n in finer]
    if others is not None:
        batch.append(others)
    seen = in_chunks(encoder, torch.cat(batch) if len(batch) > 1 else batch[0], most)
    low, *maps = seen.spatial.split([len(part) for part in batch])
    whole = Features(None if seen.summary is None else seen.summary[:b], low)
    stitched = {1: low, **{n: stitch(tiles, n) for n, tiles in zip(finer, maps)}}
    tiled = tuple(stitched[n] for n in levels)
    tiled = tiled if len(tiled) > 1 else tiled[0] if tiled else None
    return whole, tiled, None if others is None else maps[-1]
