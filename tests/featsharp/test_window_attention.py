"""Window attention, by either form, against a dense oracle on any shape; what it keeps, bf16, devices."""

import pytest
import torch

import featsharp.window_attention as module
from featsharp.tile_attention import tile_by_tile
from featsharp.window_attention import alibi_slopes, many_tiles, score_bias, window_attention
from teachers.seeding import torch_rng

FORMS = [many_tiles, tile_by_tile]


def dense_attention(q, k, v, slopes, radius):
    """Every cell with every cell, then a mask: the definition."""
    _, h, w, _, e = q.shape
    y, x = (i.flatten() for i in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    rows, columns = (y[:, None] - y[None]).abs(), (x[:, None] - x[None]).abs()
    scores = torch.einsum("bqne,bkne->bnqk", q.flatten(1, 2), k.flatten(1, 2)) / e**0.5
    scores = scores - slopes[:, 0, None, None] * rows - slopes[:, 1, None, None] * columns
    scores = scores.masked_fill((rows > radius) | (columns > radius), -torch.inf)
    out = torch.einsum("bnqk,bkne->bqne", scores.softmax(-1), v.flatten(1, 2))
    return out.unflatten(1, (h, w))


@pytest.mark.parametrize("h, w", [(16, 16), (9, 21), (1, 5), (12, 3)])
@pytest.mark.parametrize("window", [1, 7, 11])
@pytest.mark.parametrize("form", FORMS)
def test_window_attention_equals_the_dense_definition(form, h, w, window):
    rng = torch_rng("attention", h, w)
    q, k, v = (torch.randn(2, h, w, 4, 6, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(3))
    slopes, radius = alibi_slopes(4).double(), window // 2
    mine = form(q, k, v, score_bias(slopes, radius).double(), radius)
    its = dense_attention(q, k, v, slopes, radius)
    torch.testing.assert_close(mine, its)
    upstream = torch.randn(its.shape, generator=rng, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad(out, [q, k, v], upstream) for out in (mine, its))):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 0.02)])
def test_strips_computed_again_in_the_backward_change_nothing(dtype, tolerance, monkeypatch):
    rng = torch_rng("strips")
    q, k, v, upstream = (torch.randn(2, 19, 11, 2, 8, generator=rng, dtype=torch.float64) for _ in range(4))
    slopes = alibi_slopes(2).double()
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    truth = dense_attention(*leaves, slopes, 3)
    truth = truth.detach(), *torch.autograd.grad(truth, leaves, upstream)
    monkeypatch.setattr(module, "CHUNK", 1)
    leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    out = many_tiles(*leaves, score_bias(slopes, 3).double(), 3)
    assert type(out.grad_fn).__name__ == "_StripsBackward"
    for mine, its in zip((out.detach(), *torch.autograd.grad(out, leaves, upstream.to(dtype))), truth):
        assert mine.dtype == dtype and (mine.double() - its).norm() < tolerance * its.norm()


def test_alibi_heads_look_along_rows_and_columns_in_turn():
    slopes = alibi_slopes(16)
    expected = [2.0 ** -(n // 2 + 1) for n in range(16)]
    assert slopes.sum(1).tolist() == expected and expected[0] == expected[1] == 0.5 and expected[15] == 1 / 256
    assert (slopes[0::2, 1] == 0).all() and (slopes[1::2, 0] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_bf16_attention_follows_fp32(form):
    rng = torch_rng("bf16")
    full = [torch.randn(1, 10, 7, 2, 8, generator=rng).bfloat16().float().requires_grad_() for _ in range(3)]
    half = [x.detach().bfloat16().requires_grad_() for x in full]
    bias, upstream = score_bias(alibi_slopes(2), 3), torch.randn(1, 10, 7, 2, 8, generator=rng)
    results = []
    for leaves in (full, half):
        out = form(*leaves, bias, 3)
        assert out.dtype == leaves[0].dtype
        results.append([out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))])
    for exact, rounded in zip(*results):
        assert (exact - rounded.float()).norm() < 0.02 * exact.norm()


def test_a_cpu_takes_tile_by_tile_and_other_devices_many_tiles_at_once():
    q = torch.rand(1, 9, 9, 2, 8, requires_grad=True)
    bias = score_bias(alibi_slopes(2), 3)
    assert type(window_attention(q, q, q, bias, 3).grad_fn).__name__ == "_TileByTileBackward"
    meta = q.detach().to("meta")
    assert window_attention(meta, meta, meta, bias.to("meta"), 3).shape == q.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
def test_a_gpu_gives_what_a_cpu_gives(dtype, tolerance):
    rng = torch_rng("device")
    leaves = [torch.randn(2, 19, 30, 4, 24, generator=rng) for _ in range(4)]
    results = []
    for device, kind in (("cpu", torch.float32), ("cuda", dtype)):
        *qkv, upstream = (x.to(device, kind) for x in leaves)
        qkv = [x.requires_grad_() for x in qkv]
        out = window_attention(*qkv, score_bias(alibi_slopes(4), 3).to(device), 3)
        results.append([x.float().cpu() for x in (out.detach(), *torch.autograd.grad(out, qkv, upstream))])
    for mine, its in zip(*results):
        assert (mine - its).norm() < tolerance * mine.norm()
