"""Known answers of the published modules (weights, inputs, outputs), for the tests that find them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from featsharp.fusion import Fusion
from featsharp.jbu import JbuLevel

FILE = Path(__file__).parents[2] / ".." / "shared" / "data" / "featsharp_example" / "answers.safetensors"

FUSION_NAMES = {
    "attention.qkv.weight": "attn.qkv.weight",
    "attention.proj.weight": "attn.proj.weight",
    "attention.proj.bias": "attn.proj.bias",
    "gamma1": "ls1.gamma",
    "gamma2": "ls2.gamma",
    "ffn.w12.weight": "mlp.w12.weight",
    "ffn.w12.bias": "mlp.w12.bias",
    "ffn.w3.weight": "mlp.w3.weight",
    "ffn.w3.bias": "mlp.w3.bias",
}


def answers(case: str) -> dict[str, Tensor]:
    """Tensors of one case, by name; skips the test where the file is not there."""
    if not FILE.exists():
        pytest.skip("the known answers (../shared/data/featsharp_example) are not here")
    from safetensors.torch import load_file

    prefix = case + "."
    return {key.removeprefix(prefix): value for key, value in load_file(FILE).items() if key.startswith(prefix)}


@torch.no_grad()
def fill_level(level: JbuLevel, tensors: dict[str, Tensor], prefix: str) -> None:
    """Copy a JBU level's published weights; the two alphas, which cancel, have no counterpart."""
    level.temperature.copy_(tensors[prefix + "range_temp"])
    level.sigma.copy_(tensors[prefix + "sigma_spatial"])
    for i in (0, 2):
        level.project[i].weight.copy_(tensors[f"{prefix}range_proj.{i}.weight"])
        level.project[i].bias.copy_(tensors[f"{prefix}range_proj.{i}.bias"])


def fill_fusion(fusion: Fusion, tensors: dict[str, Tensor]) -> None:
    """Copy a block's published weights."""
    fusion.load_state_dict(
        {key: tensors["weight.block." + FUSION_NAMES.get(key, key)] for key in fusion.state_dict()}
    )
