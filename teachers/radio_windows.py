"""Patch tokens ↔ windows of them: what a trunk's windowed blocks see (ViTDet, arXiv 2203.16527).

Patches are put in the order of the windows once, before the first block, and back at the end: between those, folding
windows into the batch and unfolding them moves nothing. Summary tokens and registers stay out of windowed blocks.
Shapes: B images, h w grid, N = h·w patches, P tokens before them, D width, k patches a side of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from teachers.errors import UserError
from teachers.features import Size

Run = Callable[[nn.Module, Tensor], Tensor]


def to_windows(patches: Tensor, grid: Size, window: int) -> Tensor:
    """B×N×D row by row → B×N×D window by window, windows row by row and patches row by row in each.

    A plain copy with other strides: it needs no table of indices, and neither does its gradient.
    """
    h, w = grid
    if h % window or w % window:
        raise UserError(
            f"a grid of {h}×{w} patches does not divide into windows of {window}×{window}",
            expected="image sides that are multiples of patch × window",
        )
    return rearrange(patches, "b (i y j x) d -> b (i j y x) d", i=h // window, y=window, x=window)


def from_windows(patches: Tensor, grid: Size, window: int) -> Tensor:
    """The way back of `to_windows`."""
    return rearrange(patches, "b (i j y x) d -> b (i y j x) d", i=grid[0] // window, y=window, x=window)


def is_windowed(block: int, depth: int, period: int) -> bool:
    """Whether block number `block` sees windows: the last of every `period` blocks, and the very last, do not."""
    return block % period != period - 1 and block != depth - 1


def windowed_steps(
    run: Run, blocks: Iterable[nn.Module], tokens: Tensor, prefix: int, grid: Size, window: int, period: int
) -> Iterator[Callable[[], Tensor]]:
    """Runs `blocks` over tokens B×(P+N)×D in windowed mode; after each, yields what makes its tokens in image order.

    Args:
        run: `run(block, tokens)`, which may checkpoint.
        prefix: P. These tokens are as the last global block left them.
        period: `RadioSpec.window_period`.
    """
    blocks, batch = list(blocks), tokens.shape[0]  # no len(): exports leave it open
    ahead, patches = tokens[:, :prefix], to_windows(tokens[:, prefix:], grid, window)
    for number, block in enumerate(blocks):
        if is_windowed(number, len(blocks), period):
            folded = rearrange(patches, "b (n k) d -> (b n) k d", k=window**2)
            patches = rearrange(run(block, folded), "(b n) k d -> b (n k) d", b=batch)
        else:
            tokens = run(block, torch.cat([ahead, patches], dim=1))
            ahead, patches = tokens[:, :prefix], tokens[:, prefix:]
        yield partial(_in_image_order, ahead, patches, grid, window)


def _in_image_order(ahead: Tensor, patches: Tensor, grid: Size, window: int) -> Tensor:
    return torch.cat([ahead, from_windows(patches, grid, window)], dim=1)
