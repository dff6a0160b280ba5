"""The fusion block: window attention against a dense oracle on any shape, known answers, the residual carrier."""

import pytest
import torch
import torch.nn.functional as F

from featsharp.config import FusionConfig, JbuConfig, SharpenerConfig
from featsharp.fusion import CHUNK, Fusion, alibi_slopes, score_bias, window_attention
from featsharp.jbu import JbuStack
from featsharp.upsamplers.featsharp import FeatSharp
from teachers.errors import UserError
from teachers.seeding import torch_rng
from tests.featsharp.answers import answers, fill_fusion, fill_level


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
def test_window_attention_equals_the_dense_definition(h, w, window):
    rng = torch_rng("attention", h, w)
    q, k, v = (torch.randn(2, h, w, 4, 6, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(3))
    slopes, radius = alibi_slopes(4).double(), window // 2
    mine = window_attention(q, k, v, score_bias(slopes, radius).double(), radius)
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
    monkeypatch.setitem(CHUNK, "cpu", 1)
    leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    out = window_attention(*leaves, score_bias(slopes, 3).double(), 3)
    assert type(out.grad_fn).__name__ == "_StripsBackward"
    for mine, its in zip((out.detach(), *torch.autograd.grad(out, leaves, upstream.to(dtype))), truth):
        assert mine.dtype == dtype and (mine.double() - its).norm() < tolerance * its.norm()


def test_alibi_heads_look_along_rows_and_columns_in_turn():
    slopes = alibi_slopes(16)
    expected = [2.0 ** -(n // 2 + 1) for n in range(16)]
    assert slopes.sum(1).tolist() == expected and expected[0] == expected[1] == 0.5 and expected[15] == 1 / 256
    assert (slopes[0::2, 1] == 0).all() and (slopes[1::2, 0] == 0).all()


def test_bf16_attention_follows_fp32():
    rng = torch_rng("bf16")
    q, k, v = (torch.randn(1, 10, 7, 2, 8, generator=rng) for _ in range(3))
    bias = score_bias(alibi_slopes(2), 3)
    full, half = window_attention(q, k, v, bias, 3), window_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias, 3)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0, atol=0.03)


@pytest.mark.parametrize("position", ["alibi", "rope", "none"])
def test_block_with_zero_scales_returns_its_first_map_exactly(position):
    fusion = Fusion(32, 2, FusionConfig(heads=8, position=position))
    with torch.no_grad():
        fusion.gamma1.zero_()
        fusion.gamma2.zero_()
    u, t = torch.rand(2, 32, 6, 10), torch.rand(2, 32, 6, 10)
    assert torch.equal(fusion(u, t), u)


def test_hidden_width_follows_the_published_rule():
    assert [Fusion(c, 2, FusionConfig()).ffn.w3.in_features for c in (32, 64)] == [176, 344]
    with torch.device("meta"):
        assert Fusion(1280, 2, FusionConfig()).ffn.w3.in_features == 6832


def test_heads_that_do_not_divide_are_a_user_error():
    with pytest.raises(UserError, match="fusion.heads"):
        Fusion(20, 2, FusionConfig(heads=16))


CASES = [("fusion_paper", {}), ("fusion_no_ln", {"layer_norm": False}), ("fusion_rope", {"position": "rope"})]


@pytest.mark.parametrize("case, options", CASES, ids=[case for case, _ in CASES])
def test_block_gives_the_known_answer(case, options):
    known = answers(case)
    fusion = Fusion(32, 2, FusionConfig(**options))
    fill_fusion(fusion, known)
    tiles = known["tiles"] + F.interpolate(known["weight.tile_pos"], size=(12, 12), mode="nearest")
    torch.testing.assert_close(fusion(known["jbu"], tiles), known["out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case, options", CASES, ids=[case for case, _ in CASES])
def test_whole_upsampler_gives_the_known_answer(case, options):
    known = answers(case)
    config = SharpenerConfig(jbu=JbuConfig(guidance="bilinear"), fusion=FusionConfig(**options))
    upsampler = FeatSharp(32, config)
    fill_level(upsampler.jbu.levels[0], known, "weight.jbu.ups.0.")
    fill_fusion(upsampler.fusion, known)
    with torch.no_grad():
        upsampler.tile_position.copy_(known["weight.tile_pos"])
    out = upsampler(known["low_res"], known["tiles"], known["image"])
    torch.testing.assert_close(out, known["out"], rtol=0, atol=1e-5)


def test_area_guidance_averages_what_is_finer_than_a_cell():
    stripes = torch.zeros(1, 3, 48, 48)
    stripes[..., ::2] = 1
    stack, source = JbuStack(2, JbuConfig()), torch.rand(1, 2, 6, 6)
    torch.testing.assert_close(stack(source, stripes), stack(source, torch.full_like(stripes, 0.5)))
