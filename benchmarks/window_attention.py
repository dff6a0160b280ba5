"""Measures window attention (7×7, 16 heads, 2-D ALiBi), forward + backward: the fusion block's beside the unfold form.

    python benchmarks/window_attention.py                           # a table
    python benchmarks/window_attention.py --json                    # one object a line
    python benchmarks/window_attention.py --sizes 384x64x64         # the teacher's channels × height × width

`channels` is the teacher's width: attention sees twice as many, the upsampled map beside the tiles. Queries, keys and
values are given; the linear layers around are not measured. `natten` moves the window inwards at borders, has no ALiBi.
"""

from __future__ import annotations

import argparse
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from measure import Variant, ceiling, measure, report
from torch import Tensor

from featsharp.tile_attention import ROWS, TILE
from featsharp.window_attention import alibi_slopes, score_bias, window_attention
from teachers.seeding import torch_rng

HEADS, RADIUS = 16, 3
TAPS = (2 * RADIUS + 1) ** 2


def unfold_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The usual formulation: each cell's 49 keys and values side by side in memory."""
    b, h, w, heads, e = q.shape

    def around(x: Tensor) -> Tensor:
        x = x.flatten(3).permute(0, 3, 1, 2)
        return F.unfold(x, 2 * RADIUS + 1, padding=RADIUS).view(b, heads, e, TAPS, h * w)

    away = torch.arange(-RADIUS, RADIUS + 1, device=q.device).abs()
    slopes = alibi_slopes(heads).to(q)
    penalty = (slopes[:, 0, None, None] * away[:, None] + slopes[:, 1, None, None] * away).flatten(1)
    inside = F.unfold(q.new_ones(1, 1, h, w), 2 * RADIUS + 1, padding=RADIUS)[0] > 0  # 49×(h·w)
    scores = torch.einsum("bpne,bnetp->bntp", q.flatten(1, 2), around(k)) * e**-0.5 - penalty[..., None]
    weights = scores.masked_fill(~inside, -torch.inf).softmax(2)
    return torch.einsum("bntp,bnetp->bpne", weights, around(v)).unflatten(1, (h, w))


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All cells with all cells and a mask, in the fused kernel."""
    out = F.scaled_dot_product_attention(
        *(x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)), attn_mask=_mask(q.shape[1:3], q.dtype, q.device)
    )
    return out.transpose(1, 2).unflatten(1, q.shape[1:3])


@lru_cache(maxsize=1)
def _mask(size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    y, x = (i.flatten() for i in torch.meshgrid(*(torch.arange(n, device=device) for n in size), indexing="ij"))
    rows, columns = (y[:, None] - y).abs(), (x[:, None] - x).abs()
    slopes = alibi_slopes(HEADS).to(device, dtype)[..., None, None]
    penalty = -slopes[:, 0] * rows - slopes[:, 1] * columns
    return penalty.masked_fill((rows > RADIUS) | (columns > RADIUS), -torch.inf)[None]


def flex(size: tuple[int, int], device: torch.device):
    """flex_attention, compiled for one size: scores and mask as functions of positions."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    h, w = size
    slopes = alibi_slopes(HEADS).to(device)

    def near(b, head, query, key):
        return ((query // w - key // w).abs() <= RADIUS) & ((query % w - key % w).abs() <= RADIUS)

    def alibi(score, b, head, query, key):
        rows, columns = (query // w - key // w).abs(), (query % w - key % w).abs()
        return score - slopes[head, 0] * rows - slopes[head, 1] * columns

    blocks, compiled = create_block_mask(near, None, None, h * w, h * w, device=device), torch.compile(flex_attention)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
        return compiled(q, k, v, score_mod=alibi, block_mask=blocks).transpose(1, 2).unflatten(1, (h, w))

    return run


def variants(channels: int, height: int, width: int, device: torch.device, dtype: torch.dtype) -> list[Variant]:
    """Every formulation at one size, all on the same queries, keys and values B×h×w×heads×e."""
    rng = torch_rng("benchmark", "attention")
    shape = 1, height, width, HEADS, 2 * channels // HEADS
    inputs = [torch.randn(shape, generator=rng).to(device, dtype).requires_grad_() for _ in range(3)]
    bias = score_bias(alibi_slopes(HEADS), RADIUS).to(device)
    # Scores and their weighted sum: two products forward, five backward (fused kernels compute the scores again).
    per_pair = 7 * 2 * 2 * channels
    plain = per_pair * TAPS * height * width
    high = ROWS if device.type == "cpu" else TILE
    tiles = -(-height // high) * -(-width // TILE)
    tiled = per_pair * tiles * high * TILE * (high + 2 * RADIUS) * (TILE + 2 * RADIUS)
    forms = [
        Variant("default", partial(window_attention, bias=bias, radius=RADIUS), inputs, tiled),
        Variant("unfold", unfold_attention, inputs, plain, once=True),
    ]
    if height * width <= 4096:  # heads × (h·w)² numbers in the mask alone
        forms.insert(1, Variant("dense", dense_attention, inputs, per_pair * (height * width) ** 2, once=True))
    if device.type == "cuda":
        forms.insert(1, Variant("flex_attention", flex((height, width), device), inputs, plain))
        try:
            from natten.functional import na2d
        except ImportError:
            return forms
        forms.insert(2, Variant("natten", partial(na2d, kernel_size=2 * RADIUS + 1), inputs, plain))
    return forms


def size(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split("x"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--sizes", type=size, nargs="+", default=[(384, 64, 64)], metavar="CxHxW")
    parser.add_argument("--only", nargs="+", help="these variants alone")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    roof = ceiling(device, dtype)
    for channels, height, width in options.sizes:
        rng = torch_rng("benchmark", "upstream")
        upstream = torch.randn(1, height, width, HEADS, 2 * channels // HEADS, generator=rng).to(device, dtype)
        # Forward: read three maps, write one. Backward: read those four and a gradient, write three gradients.
        least = 12 * upstream.numel() * upstream.element_size()
        rows = [
            measure(variant, upstream, least, roof, options.repeats, (channels, height, width))
            for variant in variants(channels, height, width, device, dtype)
            if not options.only or variant.name in options.only
        ]
        report(rows, roof, options.json)


if __name__ == "__main__":
    main()
