"""A small student whose weights are large enough that mistakes show."""

from __future__ import annotations

from dataclasses import replace

import torch

from teachers.radio import RadioModel
from teachers.radio_spec import HeadSpec, MlpSpec, RadioSpec
from teachers.seeding import seeded, torch_rng

MLP = MlpSpec(12, 1)
SPEC = RadioSpec(
    patch=4, width=16, depth=2, num_heads=2, cpe_max=32, registers=3,
    heads={"clip": HeadSpec(10, MLP, 6, MLP), "sam": HeadSpec(8, MLP), "siglip": HeadSpec(7, MLP, 5, MLP)},
)  # fmt: skip


def model(seed: int = 0, spec: RadioSpec = SPEC, **changes) -> RadioModel:
    """In eval mode, of `spec` with some of its options changed."""
    with seeded("model", seed):
        made = RadioModel(replace(spec, **changes))
        for parameter in made.parameters():  # initial weights are so small that mistakes would hide
            torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch_rng("images", seed))
