"""The whole fusion block against its definition: cell by cell, for each way to know positions."""

import pytest
import torch
import torch.nn.functional as F

from featsharp.budget import limit
from featsharp.config import FusionConfig
from featsharp.fusion import Fusion
from teachers.seeding import seeded, torch_rng

WIDTH, HEADS = 12, 3
POSITIONS = ["alibi", "rope", "none"]
SHAPES = [(6, 19), (17, 9), (1, 11), (10, 1)]


def turned(x: torch.Tensor) -> torch.Tensor:
    """h×w×Q, neighbouring pairs of channels as complex numbers: half turn with the row, half with the column."""
    h, w, q = x.shape
    numbers = torch.view_as_complex(x.reshape(h, w, q // 2, 2).contiguous())
    n = q // 4
    speed = 50000.0 ** -(torch.arange(n, dtype=x.dtype) / n)
    rows, columns = (torch.arange(size, dtype=x.dtype)[:, None] * speed for size in (h, w))
    angles = torch.cat([rows[:, None].expand(h, w, n), columns[None].expand(h, w, n)], -1)
    return torch.view_as_real(numbers * torch.polar(torch.ones_like(angles), angles)).reshape(h, w, q)


def attended(block: Fusion, x: torch.Tensor, position: str, radius: int) -> torch.Tensor:
    """One image h×w×E → h×w×E, a loop over cells and heads."""
    h, w, e = x.shape
    q, k, v = block.attention.qkv(x).split(e, -1)
    if position == "rope":
        q, k = turned(q), turned(k)
    q, k, v = (part.reshape(h, w, HEADS, e // HEADS) for part in (q, k, v))
    rows = []
    for i in range(h):
        for j in range(w):
            near = [slice(max(0, c - radius), c + radius + 1) for c in (i, j)]
            keys, values = k[near[0], near[1]], v[near[0], near[1]]
            scores = torch.einsum("ne,abne->nab", q[i, j], keys) / (e // HEADS) ** 0.5
            if position == "alibi":
                down = (torch.arange(near[0].start, near[0].start + keys.shape[0]) - i).abs()[:, None]
                across = (torch.arange(near[1].start, near[1].start + keys.shape[1]) - j).abs()[None]
                away = [(down if head % 2 == 0 else across).expand(keys.shape[:2]) for head in range(HEADS)]
                scores = scores - torch.stack([2.0 ** -((n + 2) // 2) * a for n, a in enumerate(away)])
            weights = scores.flatten(1).softmax(1).view_as(scores)
            rows.append(torch.einsum("nab,abne->ne", weights, values).flatten())
    return block.attention.proj(torch.stack(rows).view(h, w, e))


def defined(block: Fusion, maps: list[torch.Tensor], position: str, radius: int) -> torch.Tensor:
    """The block, image by image, as the paper writes it."""
    results = []
    for image in torch.cat(maps, 1):
        x = image.permute(1, 2, 0)
        x = x + block.gamma1 * attended(block, block.norm1(x), position, radius)
        a, b = block.ffn.w12(block.norm2(x)).chunk(2, -1)
        results.append((x[..., :WIDTH] + block.gamma2 * block.ffn.w3(F.silu(a) * b)).permute(2, 0, 1))
    return torch.stack(results)


def block(position: str, window: int, layer_norm: bool = True) -> Fusion:
    config = FusionConfig(heads=HEADS, position=position, window=window, layer_norm=layer_norm, layer_scale=0.7)
    with seeded("block", position, window):
        return Fusion(WIDTH, 2, config)


def inputs(h: int, w: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.randn(2, WIDTH, h, w, generator=torch_rng("map", i, h, w), dtype=dtype) for i in range(2)]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("window, layer_norm", [(1, True), (3, False), (7, True), (11, True)])
def test_block_equals_its_definition_forward_and_backward(position, window, layer_norm):
    made = block(position, window, layer_norm).double()
    for h, w in SHAPES:
        maps = [m.requires_grad_() for m in inputs(h, w)]
        mine, its = made(*maps), defined(made, maps, position, window // 2)
        torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-7)
        upstream = torch.randn(its.shape, generator=torch_rng("upstream"), dtype=its.dtype)
        wanted = [*maps, *made.parameters()]
        for a, b in zip(*(torch.autograd.grad(out, wanted, upstream) for out in (mine, its))):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_block_in_bands_equals_its_definition(position):
    made = block(position, 7).double()
    limit(made, 1)
    maps = inputs(21, 5)
    torch.testing.assert_close(made(*maps), defined(made, maps, position, 3), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_block_in_bf16_follows_its_definition(position):
    made = block(position, 7)
    maps = inputs(9, 14, torch.float32)
    expected = defined(made, maps, position, 3)
    half = made.to(torch.bfloat16)(*(m.bfloat16() for m in maps))
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 0.02 * expected.norm()


@torch.no_grad()
def test_a_corner_sees_the_keys_that_exist_and_no_others():
    """Windows are cut off at borders, not moved: a corner of a window of 7 depends on 4×4 cells."""
    made = block("none", 7)
    maps = inputs(9, 10, torch.float32)
    before = made(*maps)[..., 0, 0]
    for (y, x), seen in {(3, 3): True, (4, 0): False, (0, 4): False, (3, 0): True}.items():
        moved = [m.clone() for m in maps]
        moved[1][..., y, x] += 10
        assert torch.equal(made(*moved)[..., 0, 0], before) != seen
