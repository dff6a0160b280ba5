"""The adaptive filter: enlarges a map, then gives each cell a weighted mean of its neighbours by weights of its own.

Four forms of one linear map, equal up to rounding, forward and backward: `shift`, the definition; `shift_add`, the
same passes over a few channels at a time; `composed`, tiles and matrix products; `triton`, those in CUDA kernels.

Shapes: B images, C channels, h w source cells, s factor, H = h·s, W = w·s, D = 2·radius + 1 taps along an axis,
t output cells along a tile's side, which see K source cells along it; ny nx tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from featsharp.patches import add_seen, mirrored, seen, split
from teachers.errors import UserError
from teachers.features import has_values

TILE = 8  # output cells along the side of a tile, about
CHUNK = {"cpu": 2**20, "cuda": 2**25}  # bytes worked on at a time: about a core's cache; enough to fill a GPU


def adaptive_upsample(source: Tensor, kernel: Tensor, factor: int, implementation: str = "auto") -> Tensor:
    """Enlarge `source` B×C×h×w bilinearly by `factor`, then filter each cell with its own `kernel` B×D²×H×W.

    The borders are mirrored; factor 1 only filters. "auto" is `triton` on CUDA where it can be imported and knows the
    dtype, else `composed`.
    """
    if implementation == "auto":
        fused = source.is_cuda and source.dtype != torch.float64 and find_spec("triton") is not None
        implementation = "triton" if fused else "composed"
    if implementation not in FORMS:
        raise UserError(f"unknown implementation '{implementation}'", expected="auto, " + ", ".join(FORMS))
    return FORMS[implementation](source, kernel, factor)


# Passes over the enlarged map ------------------------------------------------------------------------------------


def reflect_pad(x: Tensor, radius: int) -> Tensor:
    """`…×H×W` → `…×(H+2·radius)×(W+2·radius)`, also where the radius is larger than the map."""
    rows, columns = (mirrored(torch.arange(-radius, n + radius, device=x.device), n) for n in x.shape[-2:])
    return x.index_select(-2, rows).index_select(-1, columns)


def enlarged(source: Tensor, factor: int, radius: int) -> Tensor:
    """B×C×h×w → B×C×(H+2·radius)×(W+2·radius): enlarged, with mirrored borders."""
    size = [n * factor for n in source.shape[-2:]]
    return reflect_pad(F.interpolate(source, size=size, mode="bilinear", align_corners=False), radius)


def shift_upsample(source: Tensor, kernel: Tensor, factor: int) -> Tensor:
    """The definition, one pass over the enlarged map a tap: the reference that the fast forms are tested against."""
    d = taps_along(kernel)
    h, w = kernel.shape[-2:]
    large = enlarged(source, factor, d // 2)
    kernel = kernel.to(source.dtype)
    return sum(kernel[:, i * d + j, None] * large[:, :, i : i + h, j : j + w] for i in range(d) for j in range(d))


def taps_along(kernel: Tensor) -> int:
    """D of weights B×D²×H×W."""
    return round(kernel.shape[1] ** 0.5)


def shift_add_upsample(source: Tensor, kernel: Tensor, factor: int) -> Tensor:
    """The definition with a backward of its own, some channels at a time: keeps nothing but its inputs."""
    return _ShiftAdd.apply(source, kernel, factor)


class _ShiftAdd(torch.autograd.Function):
    """Sums run in fp32 at least, also for bf16 maps."""

    @staticmethod
    def forward(ctx, source: Tensor, kernel: Tensor, factor: int) -> Tensor:
        ctx.save_for_backward(source, kernel)
        ctx.factor = factor
        out = source.new_empty(*source.shape[:2], *kernel.shape[-2:])
        weights = kernel.to(torch.promote_types(source.dtype, torch.float32))
        for part in _channels(out, weights):
            large = enlarged(source[:, part].to(weights.dtype), factor, taps_along(kernel) // 2)
            total = torch.zeros_like(out[:, part], dtype=weights.dtype)
            for tap, window in _windows(kernel):
                total.addcmul_(large[window], weights[:, tap, None])
            out[:, part] = total
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        source, kernel = ctx.saved_tensors
        weights = kernel.to(torch.promote_types(source.dtype, torch.float32))
        of_source, of_kernel = torch.empty_like(source), torch.zeros_like(weights)
        for part in _channels(upstream, weights):
            with torch.enable_grad():  # so that autograd knows how to shrink a gradient again
                leaf = source[:, part].detach().requires_grad_()
                large = enlarged(leaf.to(weights.dtype), ctx.factor, taps_along(kernel) // 2)
            up, of_large, values = upstream[:, part].to(weights.dtype), torch.zeros_like(large), large.detach()
            for tap, window in _windows(kernel):
                of_large[window].addcmul_(up, weights[:, tap, None])
                of_kernel[:, tap] += (up * values[window]).sum(1)
            of_source[:, part] = torch.autograd.grad(large, leaf, of_large)[0]
        return of_source, of_kernel.to(kernel.dtype), None


def chunk_of(x: Tensor) -> int:
    """Bytes that are worked on at once on a tensor's device; without values as on a GPU, where a plan is for."""
    return CHUNK.get(x.device.type, CHUNK["cuda"]) if has_values(x) else CHUNK["cuda"]


def _channels(like: Tensor, weights: Tensor) -> list[slice]:
    """Parts of the channels, so many at a time that a part of a map stays in the cache."""
    b, c, h, w = like.shape
    step = max(1, chunk_of(like) // (b * h * w * weights.element_size()))
    return [slice(first, first + step) for first in range(0, c, step)]


def _windows(kernel: Tensor) -> list[tuple[int, tuple]]:
    """Each tap, and what it sees of the padded map."""
    d, (h, w) = taps_along(kernel), kernel.shape[-2:]
    return [(i * d + j, (..., slice(i, i + h), slice(j, j + w))) for i in range(d) for j in range(d)]


# Tiles and matrix products ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiling:
    """How tiles along an axis lie over the source: number `i` sees the cells i·stride − before … + reach − 1.

    The cells that it sees beyond the borders have weight 0.
    """

    side: int  # output cells of a tile
    stride: int  # source cells from a tile to the next
    before: int
    reach: int

    @classmethod
    def of(cls, factor: int, radius: int) -> Tiling:
        stride = max(1, round(TILE / factor))
        # Output cell x lies at (2x + 1 − s) / 2s of the source, between two of its cells.
        first = (1 - 2 * radius - factor) // (2 * factor)
        last = -((factor - 2 * (stride * factor + radius) + 1) // (2 * factor))
        return cls(stride * factor, stride, -first, last - first + 1)


def composed_upsample(source: Tensor, kernel: Tensor, factor: int) -> Tensor:
    """Fold enlarging and mirroring into the weights, tile by tile, and apply those to the source itself.

    Enlarging, mirroring and filtering are all linear in the source. An 8×8 tile of output (at factor 2) depends on 8×8
    source cells only, so its 64 kernels become one 64×64 matrix: the filter runs at the speed of matrix products, and
    the enlarged map never exists.
    """
    weights, tiling = tile_weights(kernel, source.shape[-2:], factor)
    return _TileProduct.apply(source, weights, tiling, tuple(kernel.shape[-2:]))


def tile_weights(kernel: Tensor, size: tuple[int, int], factor: int) -> tuple[Tensor, Tiling]:
    """Kernels B×D²×H×W → what each output cell takes from the source cells its tile sees, B×ny×nx×t²×K²."""
    d = taps_along(kernel)
    tiling = Tiling.of(factor, d // 2)
    rows, columns = (axis_weights(n, factor, d // 2, kernel.device, kernel.dtype) for n in size)  # (ny·t)×D×K
    kernel = F.pad(kernel, (0, len(columns) - kernel.shape[-1], 0, len(rows) - kernel.shape[-2])).unflatten(1, (d, d))
    weights = torch.einsum("bijyx,xjl->bixyl", kernel, columns)  # taps along x → source columns
    weights = torch.einsum("bixyl,yik->byxkl", weights, rows)  # taps along y → source rows
    weights = weights.unflatten(2, (-1, tiling.side)).unflatten(1, (-1, tiling.side)).transpose(2, 3)
    return weights.flatten(5).flatten(3, 4), tiling


def axis_weights(n: int, factor: int, radius: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Along an axis of n source cells: output cell × tap → its weights on the cells that its tile sees, (ny·t)×D×K.

    Bilinear, align_corners=False; zero for the output cells by which the last tile is too long.
    """
    make = _axis_weights if has_values(torch.empty(0)) else _axis_weights.__wrapped__  # what has none is not kept
    return make(n, factor, radius, device, dtype)


@lru_cache(maxsize=64)
def _axis_weights(n: int, factor: int, radius: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    tiling = Tiling.of(factor, radius)
    tiles = -(-n * factor // tiling.side)
    with torch.inference_mode(False), torch.no_grad():  # kept, so it must be usable in training too
        cell = torch.arange(tiles * tiling.side, device="cpu")
        tap = torch.arange(-radius, radius + 1, device="cpu")
        place = (mirrored(cell[:, None] + tap, n * factor).double() + 0.5) / factor - 0.5
        place = place.clamp(0, n - 1)
        seen = cell[:, None] // tiling.side * tiling.stride - tiling.before + torch.arange(tiling.reach, device="cpu")
        weights = (1 - (place[..., None] - seen[:, None]).abs()).clamp(min=0) * (cell < n * factor)[:, None, None]
        return weights.to(device, dtype)


class _TileProduct(torch.autograd.Function):
    """Source B×C×h×w, weights B×ny×nx×t²×K² → B×C×H×W: one matrix product a tile, some rows of tiles at a time.

    What the tiles see is cut out of the source again in the backward: it would be as large as the output.
    """

    @staticmethod
    def forward(ctx, source: Tensor, weights: Tensor, tiling: Tiling, size: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(source, weights)
        ctx.tiling = tiling
        padded = _padded(source, weights, tiling)
        _, ny, nx, *_ = weights.shape
        t, s, k, c = tiling.side, tiling.stride, tiling.reach, source.shape[1]
        out = source.new_empty(len(source), ny * t, nx * t, c)  # whole tiles: what is too much is cut off at the end
        for b, rows in _strips(weights, source):
            sources = seen(padded[b : b + 1, rows.start * s :], s, k, rows.stop - rows.start, nx)
            product = torch.bmm(weights[b, rows].flatten(0, 1).to(source.dtype), sources)
            cells = out[b, rows.start * t : rows.stop * t].view(-1, t, nx, t, c).transpose(1, 2)
            cells.copy_(product.view(-1, nx, t, t, c))
        return out[:, : size[0], : size[1]].permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        source, weights = ctx.saved_tensors
        tiling, nx = ctx.tiling, weights.shape[2]
        t, s, k = tiling.side, tiling.stride, tiling.reach
        padded = _padded(source, weights, tiling)
        of_padded, of_weights = torch.zeros_like(padded), torch.empty_like(weights)
        last = None
        for b, rows in _strips(weights, source):
            if b != last:  # one image at a time, for the sake of memory
                image, last = channels_last(upstream[b : b + 1]), b
            up = split(image[:, rows.start * t : rows.stop * t], t)
            here, ny = slice(rows.start * s, None), rows.stop - rows.start
            sources = seen(padded[b : b + 1, here], s, k, ny, nx)
            of_weights[b, rows] = torch.bmm(up, sources.transpose(1, 2)).view_as(of_weights[b, rows])
            of_sources = torch.bmm(weights[b, rows].flatten(0, 1).to(source.dtype).transpose(1, 2), up)
            add_seen(of_padded[b : b + 1, here], of_sources, s, k, ny, nx)
        h, w = source.shape[-2:]
        inner = slice(tiling.before, tiling.before + h), slice(tiling.before, tiling.before + w)
        return of_padded[(slice(None), *inner)].permute(0, 3, 1, 2), of_weights, None, None


def channels_last(x: Tensor) -> Tensor:
    """B×C×H×W → B×H×W×C in memory; as transposes of matrices, which are several times faster than permuted copies."""
    b, c, h, w = x.shape
    if not x.is_contiguous():
        return x.permute(0, 2, 3, 1).contiguous()
    out = x.new_empty(b, h * w, c)
    for mine, its in zip(out, x):
        mine.copy_(its.view(c, h * w).t())
    return out.view(b, h, w, c)


def _strips(weights: Tensor, source: Tensor) -> list[tuple[int, slice]]:
    """Image by image, so many rows of tiles that what they see is about a chunk."""
    b, ny, nx, _, sources = weights.shape
    chunk = chunk_of(source)
    step = max(1, chunk // (nx * sources * source.shape[1] * source.element_size()))
    return [(i, slice(first, min(first + step, ny))) for i in range(b) for first in range(0, ny, step)]


def _padded(source: Tensor, weights: Tensor, tiling: Tiling) -> Tensor:
    """B×C×h×w → channels last, with zeros around it, so that all that any tile sees is there."""
    pads = [0, 0]
    for tiles, n in zip(weights.shape[2:0:-1], (source.shape[3], source.shape[2])):
        pads += [tiling.before, (tiles + tiling.reach // tiling.stride) * tiling.stride - tiling.before - n]
    return F.pad(channels_last(source), pads)


def triton_upsample(source: Tensor, kernel: Tensor, factor: int) -> Tensor:
    """The composed tiles as fused kernels: nothing is cut out, padded or put together in memory."""
    installed = find_spec("triton") is not None
    if not source.is_cuda or source.dtype == torch.float64 or not installed:
        kind = f"{str(source.dtype).removeprefix('torch.')} on {source.device}"
        raise UserError(
            f"the triton form of JBU cannot run here: {kind}, triton {'' if installed else 'not '}installed",
            expected="a map of float32, bfloat16 or float16 on a CUDA device, and the triton package",
            todo="set jbu.implementation to auto in the sharpener's recipe",
        )
    from featsharp.jbu_triton import tile_product

    weights, tiling = tile_weights(kernel, source.shape[-2:], factor)
    return tile_product(source, weights, tiling, tuple(kernel.shape[-2:]))


FORMS = {
    "composed": composed_upsample,
    "shift_add": shift_add_upsample,
    "triton": triton_upsample,
    "shift": shift_upsample,
}
