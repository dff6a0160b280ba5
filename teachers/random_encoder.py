"""Turns a seed into an encoder: a small random network of any patch, width and resolution; for tests and trials.

Patches are embedded linearly and mixed with their neighbours by depthwise convolutions and MLPs, so features depend on
the picture, vary smoothly over it and are the same on every machine for a seed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teachers.features import Dims, Whiten
from teachers.frozen import FrozenEncoder, as_dtype, as_size, on_meta
from teachers.seeding import seeded


class _Mixer(nn.Module):
    """One residual block on B×D×h×w: a 3×3 depthwise convolution, then an MLP a cell."""

    def __init__(self, width: int):
        super().__init__()
        self.near = nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate", groups=width)
        self.mlp = nn.Sequential(
            nn.GroupNorm(1, width), nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.near(x)
        return x + self.mlp(x)


class RandomEncoder(FrozenEncoder):
    """Images → features of a random network drawn from `seed`."""

    def __init__(self, *, name: str, licence: str, patch: int, width: int, depth: int, image_size, seed: int):
        super().__init__()
        self.whiten = Whiten((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        with seeded("random_encoder", seed):
            self.network = nn.ModuleDict(
                {
                    "embed": nn.Conv2d(3, width, patch, stride=patch),
                    "blocks": nn.Sequential(*(_Mixer(width) for _ in range(depth))),
                    "pool": nn.Linear(width, width),
                }
            )
        self.declare(
            name=name,
            licence=licence,
            patch_size=patch,
            native_size=as_size(image_size),
            resolution_flexible=True,
            dims=Dims(width, width),
        )

    def encode(self, whitened: Tensor) -> tuple[Tensor, Tensor]:
        spatial = self.network["blocks"](self.network["embed"](whitened))
        return self.network["pool"](spatial.mean((2, 3))), spatial


def build(
    *,
    name: str = "random",
    licence: str = "none",
    weights: str = "random",
    meta: bool = False,
    device: torch.device | str = "cpu",
    patch: int = 16,
    width: int = 64,
    depth: int = 2,
    image_size: int | list[int] = 224,
    seed: int = 0,
    dtype: str | torch.dtype = "fp32",
) -> RandomEncoder:
    """The encoder of `seed`; `weights` can only be "random"."""
    with on_meta(meta):
        encoder = RandomEncoder(
            name=name, licence=licence, patch=patch, width=width, depth=depth, image_size=image_size, seed=seed
        )
    encoder.network.to(as_dtype(dtype))
    return encoder if meta else encoder.to(device)
