"""The adaptive filter's tiles as three CUDA kernels: output, gradient by the source, gradient by the weights.

Each is a batch of small matrix products whose operands are read where they lie, whatever the layout: patches are never
cut out, the enlarged map never exists, and no two programs write to the same place, so there are no atomics. Channels
are streamed in blocks, sums run in fp32.

Shapes and geometry as in `featsharp.adaptive`: a tile of t×t output cells sees K×K source cells.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from featsharp.adaptive import Tiling

BLOCK = 64  # output cells, source cells, or channels at a time
SIDE = 4  # source cells along the side of the block whose gradient one program gathers, about


def tile_product(source: Tensor, weights: Tensor, tiling: Tiling, size: tuple[int, int]) -> Tensor:
    """Source B×C×h×w, weights B×ny×nx×t²×K² → B×C×H×W, as `featsharp.adaptive` defines it."""
    return _TileProduct.apply(source, weights.contiguous(), tiling, size)


class _TileProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, source: Tensor, weights: Tensor, tiling: Tiling, size: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(source, weights)
        ctx.tiling = tiling
        b, c, h, w = source.shape
        out = source.new_empty(b, *size, c).permute(0, 3, 1, 2)
        _, ny, nx, cells, seen = weights.shape
        grid = (b * ny * nx, triton.cdiv(cells, BLOCK), triton.cdiv(c, BLOCK))
        with torch.cuda.device_of(source):  # triton starts kernels on the current device; CPU tensors: interpreter
            _output[grid](
                source, weights, out, *source.stride(), *out.stride(), c, h, w, *size, ny, nx,
                **geometry(tiling),
            )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        source, weights = ctx.saved_tensors
        b, c, h, w = source.shape
        size = upstream.shape[2:]
        _, ny, nx, cells, seen = weights.shape
        by, bx = (-(-(n + ctx.tiling.before) // block_of(ctx.tiling)["SIDE"]) for n in (h, w))
        of_source = source.new_empty(b, h, w, c).permute(0, 3, 1, 2)
        of_weights = torch.empty_like(weights)
        shapes = (c, h, w, *size, ny, nx)
        with torch.cuda.device_of(source):
            _source_gradient[(b * by * bx, triton.cdiv(c, BLOCK))](
                upstream, weights, of_source, *upstream.stride(), *of_source.stride(), *shapes, by, bx,
                **geometry(ctx.tiling), **block_of(ctx.tiling),
            )  # fmt: skip
            _weight_gradient[(b * ny * nx, triton.cdiv(cells, BLOCK), triton.cdiv(seen, BLOCK))](
                upstream, source, of_weights, *upstream.stride(), *source.stride(), *shapes,
                **geometry(ctx.tiling),
            )  # fmt: skip
        return of_source, of_weights, None, None


def geometry(tiling: Tiling) -> dict[str, int]:
    """What the kernels know of a tile when they are compiled."""
    return {
        "T": tiling.side, "STRIDE": tiling.stride, "BEFORE": tiling.before, "REACH": tiling.reach,
        "CELLS": tiling.side**2, "SEEN": tiling.reach**2, "BLOCK": BLOCK,
    }  # fmt: skip


def block_of(tiling: Tiling) -> dict[str, int]:
    """The block of source cells whose gradient a program gathers; a product has 16 rows at least."""
    side = tiling.stride * max(1, SIDE // tiling.stride)
    return {"SIDE": side, "PLACES": max(16, triton.next_power_of_2(side * side))}


@triton.jit
def _output(
    source, weights, out, source_b, source_c, source_y, source_x, out_b, out_c, out_y, out_x,
    c, h, w, height, width, ny, nx,
    T: tl.constexpr, STRIDE: tl.constexpr, BEFORE: tl.constexpr, REACH: tl.constexpr,
    CELLS: tl.constexpr, SEEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile's output cells × channels: the sum over what it sees of weights × source."""
    tile = tl.program_id(0).to(tl.int64)
    b, ty, tx = tile // (ny * nx), tile // nx % ny, tile % nx
    cell = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for first in range(0, SEEN, BLOCK):
        seen = first + tl.arange(0, BLOCK)
        y, x = ty * STRIDE - BEFORE + seen // REACH, tx * STRIDE - BEFORE + seen % REACH
        inside = (seen < SEEN) & (y >= 0) & (y < h) & (x >= 0) & (x < w)
        values = tl.load(
            source + b * source_b + (y * source_y + x * source_x)[:, None] + channel[None, :] * source_c,
            mask=inside[:, None] & (channel < c)[None, :], other=0.0,
        )  # fmt: skip
        weight = tl.load(
            weights + (tile * CELLS + cell[:, None]) * SEEN + seen[None, :],
            mask=(cell < CELLS)[:, None] & (seen < SEEN)[None, :], other=0.0,
        )  # fmt: skip
        total += tl.dot(weight.to(values.dtype), values, input_precision="ieee")
    y, x = ty * T + cell // T, tx * T + cell % T
    inside = (cell < CELLS) & (y < height) & (x < width)
    tl.store(
        out + b * out_b + (y * out_y + x * out_x)[:, None] + channel[None, :] * out_c,
        total.to(out.dtype.element_ty), mask=inside[:, None] & (channel < c)[None, :],
    )  # fmt: skip


@triton.jit
def _source_gradient(
    upstream, weights, of_source, up_b, up_c, up_y, up_x, of_b, of_c, of_y, of_x,
    c, h, w, height, width, ny, nx, by, bx,
    T: tl.constexpr, STRIDE: tl.constexpr, BEFORE: tl.constexpr, REACH: tl.constexpr,
    CELLS: tl.constexpr, SEEN: tl.constexpr, BLOCK: tl.constexpr, SIDE: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """A block of source cells × channels: gathers from every tile that sees it, so that no two programs add up."""
    block = tl.program_id(0).to(tl.int64)
    b, block_y, block_x = block // (by * bx), block // bx % by, block % bx
    place = tl.arange(0, PLACES)
    y, x = block_y * SIDE - BEFORE + place // SIDE, block_x * SIDE - BEFORE + place % SIDE
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((PLACES, BLOCK), tl.float32)
    # Blocks begin where tiles begin to see, a whole number of strides apart.
    FIRST: tl.constexpr = -((REACH - 1) // STRIDE)
    TILES: tl.constexpr = SIDE // STRIDE - FIRST
    for number in range(TILES * TILES):
        ty = block_y * (SIDE // STRIDE) + FIRST + number // TILES
        tx = block_x * (SIDE // STRIDE) + FIRST + number % TILES
        here = (ty >= 0) & (ty < ny) & (tx >= 0) & (tx < nx)
        tile = (b * ny + ty) * nx + tx
        row, column = y - (ty * STRIDE - BEFORE), x - (tx * STRIDE - BEFORE)  # of the cell in what the tile sees
        known = (place < SIDE * SIDE) & (row >= 0) & (row < REACH) & (column >= 0) & (column < REACH) & here
        for first in range(0, CELLS, BLOCK):
            cell = first + tl.arange(0, BLOCK)
            out_y, out_x = ty * T + cell // T, tx * T + cell % T
            inside = (cell < CELLS) & (out_y < height) & (out_x < width) & here
            values = tl.load(
                upstream + b * up_b + (out_y * up_y + out_x * up_x)[:, None] + channel[None, :] * up_c,
                mask=inside[:, None] & (channel < c)[None, :], other=0.0,
            )  # fmt: skip
            weight = tl.load(
                weights + (tile * CELLS + cell[None, :]) * SEEN + (row * REACH + column)[:, None],
                mask=known[:, None] & (cell < CELLS)[None, :], other=0.0,
            )  # fmt: skip
            total += tl.dot(weight.to(values.dtype), values, input_precision="ieee")
    inside = (place < SIDE * SIDE) & (y >= 0) & (y < h) & (x >= 0) & (x < w)
    tl.store(
        of_source + b * of_b + (y * of_y + x * of_x)[:, None] + channel[None, :] * of_c,
        total.to(of_source.dtype.element_ty), mask=inside[:, None] & (channel < c)[None, :],
    )  # fmt: skip


@triton.jit
def _weight_gradient(
    upstream, source, of_weights, up_b, up_c, up_y, up_x, source_b, source_c, source_y, source_x,
    c, h, w, height, width, ny, nx,
    T: tl.constexpr, STRIDE: tl.constexpr, BEFORE: tl.constexpr, REACH: tl.constexpr,
    CELLS: tl.constexpr, SEEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile's output cells × what it sees: the sum over channels of upstream × source."""
    tile = tl.program_id(0).to(tl.int64)
    b, ty, tx = tile // (ny * nx), tile // nx % ny, tile % nx
    cell = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    out_y, out_x = ty * T + cell // T, tx * T + cell % T
    known = (cell < CELLS) & (out_y < height) & (out_x < width)
    seen = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    y, x = ty * STRIDE - BEFORE + seen // REACH, tx * STRIDE - BEFORE + seen % REACH
    inside = (seen < SEEN) & (y >= 0) & (y < h) & (x >= 0) & (x < w)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for first in range(0, c, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        up = tl.load(
            upstream + b * up_b + (out_y * up_y + out_x * up_x)[:, None] + channel[None, :] * up_c,
            mask=known[:, None] & (channel < c)[None, :], other=0.0,
        )  # fmt: skip
        values = tl.load(
            source + b * source_b + (y * source_y + x * source_x)[None, :] + channel[:, None] * source_c,
            mask=inside[None, :] & (channel < c)[:, None], other=0.0,
        )  # fmt: skip
        total += tl.dot(up, values, input_precision="ieee")
    tl.store(
        of_weights + (tile * CELLS + cell[:, None]) * SEEN + seen[None, :],
        total, mask=(cell < CELLS)[:, None] & (seen < SEEN)[None, :],
    )  # fmt: skip
