"""Adaptor heads, layer by layer: MLPs of both versions, the attention head, and features finer than the grid."""

from __future__ import annotations

import math

import pytest
import torch

from teachers.errors import UserError
from teachers.radio_heads import VERSIONS, as_map, build_heads
from teachers.radio_spec import HeadSpec, MlpSpec, RadioSpec
from teachers.seeding import seeded, torch_rng
from tests.teachers.radio_toys import MLP, SPEC, images, model


def head(version: str, width: int = 16, hidden: int = 12, blocks: int = 1, out: int = 10) -> torch.nn.Module:
    with seeded("head", version):
        made = VERSIONS[version](width, MlpSpec(hidden, blocks, version), out)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return made


class Layers:
    """A head's arithmetic again, from its state."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        self.weights = weights

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, correction=0) + eps)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def layers_of(*names: str) -> set[str]:
    return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


def test_version_2_has_residual_blocks():
    made, tokens = head("v2"), images(4, 16)
    assert set(made.state_dict()) == layers_of("fc1", "blocks.0.0", "blocks.0.2", "final.0", "final.2")
    its = Layers(made.state_dict())
    x = its.linear("fc1", tokens)
    x = x + its.linear("blocks.0.2", gelu(its.norm("blocks.0.0", x)))
    torch.testing.assert_close(made(tokens), its.linear("final.2", gelu(its.norm("final.0", x))))


def test_version_1_has_plain_layers_with_relus():
    made, tokens = head("v1"), images(4, 16)
    assert set(made.state_dict()) == layers_of("fc1", "norm", "inner.0.0", "inner.0.1", "fc2")
    its = Layers(made.state_dict())
    x = its.norm("norm", its.linear("fc1", tokens)).clamp(min=0)
    x = its.norm("inner.0.1", its.linear("inner.0.0", x)).clamp(min=0)
    torch.testing.assert_close(made(tokens), its.linear("fc2", x))


def test_an_attention_head_has_two_blocks_of_16_heads_before_its_mlp():
    made, tokens = head("attention", width=32, blocks=3), images(2, 6, 32)
    its, x = Layers(made.state_dict()), tokens
    assert "blocks.0.attn.qkv.bias" not in its.weights and "mlp.blocks.0.0.weight" not in its.weights
    for block in ("blocks.0", "blocks.1"):
        qkv = its.norm(f"{block}.norm1", x, 1e-6) @ its.weights[f"{block}.attn.qkv.weight"].T
        q, k, v = qkv.view(2, 6, 3, 16, 2).permute(2, 0, 3, 1, 4)
        seen = ((q @ k.mT / math.sqrt(2)).softmax(-1) @ v).transpose(1, 2).reshape(2, 6, 32)
        x = x + its.weights[f"{block}.ls1.gamma"] * its.linear(f"{block}.attn.proj", seen)
        hidden = gelu(its.linear(f"{block}.mlp.fc1", its.norm(f"{block}.norm2", x, 1e-6)))
        x = x + its.weights[f"{block}.ls2.gamma"] * its.linear(f"{block}.mlp.fc2", hidden)
    x = its.linear("mlp.fc1", x)
    wanted = its.linear("mlp.final.2", gelu(its.norm("mlp.final.0", x)))
    torch.testing.assert_close(made(tokens), wanted, atol=1e-5, rtol=1e-5)
    fresh = VERSIONS["attention"](32, MlpSpec(8), 4)
    assert fresh.blocks[1].ls2.gamma.unique().tolist() == [pytest.approx(1e-5)]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_linear_map_of_the_answer_folds_into_the_last_layer(version):
    made, tokens = head(version), images(2, 6, 16)
    turn = torch.randn(10, 10, generator=torch_rng("turn"))
    wanted = made(tokens) @ turn.T + 1
    with torch.no_grad():
        made.last.weight.copy_(turn @ made.last.weight)
        made.last.bias.copy_(turn @ made.last.bias + 1)
    torch.testing.assert_close(made(tokens), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_finer_head_shuffles_each_patchs_values_into_its_cells(version):
    spec = HeadSpec(3, MlpSpec(12, 0, version), up=2)
    with seeded("finer"):
        made = model(heads={**SPEC.heads, "fine": spec})
    out, tokens = made(images(2, 3, 16, 24)), made.tokens(images(2, 3, 16, 24))
    features = out["fine"].features
    assert features.shape == (2, 3, 8, 12) and out["clip"].features.shape == (2, 10, 4, 6)
    values = made.heads["fine"]["spatial"](tokens[:, made.first_patch :])
    assert values.shape == (2, 24, 12)
    for i, j, v, u in ((0, 0, 0, 0), (0, 0, 0, 1), (1, 5, 1, 0), (3, 2, 1, 1)):  # laid out (row, column, channel)
        cell = values[:, 6 * i + j].view(2, 2, 2, 3)[:, v, u]
        torch.testing.assert_close(features[:, :, 2 * i + v, 2 * j + u], cell)


def test_maps_are_read_row_by_row():
    tokens = torch.arange(6.0).view(1, 6, 1)
    assert as_map(tokens, (2, 3))[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_heads_are_built_as_described_and_impossible_ones_are_refused():
    built = build_heads(16, HeadSpec(7, MlpSpec(9, 2, "v1"), 5, MlpSpec(8)))
    assert type(built["spatial"]) is VERSIONS["v1"] and type(built["summary"]) is VERSIONS["v2"]
    assert len(built["spatial"].inner) == 2 and not len(built["summary"].blocks)
    assert set(build_heads(16, HeadSpec(7, MLP))) == {"spatial"}
    with pytest.raises(UserError, match="attention head of sam cannot split a width of 24"):
        RadioSpec(4, 24, 2, 2, 32, 0, {"sam": HeadSpec(7, MlpSpec(8, 0, "attention"))})
