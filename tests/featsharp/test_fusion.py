"""The fusion block: known answers, the residual carrier, its sizes."""

import pytest
import torch
import torch.nn.functional as F

from featsharp.config import FusionConfig, JbuConfig, SharpenerConfig
from featsharp.fusion import Fusion
from featsharp.jbu import JbuStack
from featsharp.upsamplers.featsharp import FeatSharp
from teachers.errors import UserError
from tests.featsharp.answers import answers, fill_fusion, fill_level


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
