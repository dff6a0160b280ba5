"""Images → the trunk's tokens: summary tokens, registers and embedded patches with their positions.

Shapes: B images, H W pixels, N patches, D width, T summary tokens, R registers.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from teachers.radio_positions import PositionTable
from teachers.radio_spec import RadioSpec
from teachers.stem import conv_stem, stem_strides


class LinearEmbedder(nn.Linear):
    """B×3×H×W → B×N×D by one linear layer a patch (flattened channel by channel), as in RADIO."""

    def __init__(self, patch: int, width: int, bias: bool = False):
        super().__init__(3 * patch**2, width, bias=bias)
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        p = self.patch
        return super().forward(rearrange(images, "b c (h y) (w x) -> b (h w) (c y x)", y=p, x=p))


class ConvEmbedder(nn.Module):
    """B×3×H×W → B×N×D by a convolutional stem; its norms see one image, as batches differ in size from step to step."""

    def __init__(self, patch: int, width: int, bias: bool = False):
        super().__init__()
        self.stem = conv_stem(stem_strides(patch), width, partial(nn.GroupNorm, 1))  # its last layer has a bias anyway

    def forward(self, images: Tensor) -> Tensor:
        return rearrange(self.stem(images), "b d h w -> b (h w) d")


EMBEDDERS = {"linear": LinearEmbedder, "conv": ConvEmbedder}


class PatchGenerator(nn.Module):
    """Images → tokens: embedded patches with positions; summary tokens and registers in front."""

    def __init__(self, spec: RadioSpec):
        super().__init__()
        self.patch = spec.patch
        self.embedder = EMBEDDERS[spec.stem](spec.patch, spec.width, spec.patch_bias)
        self.positions = PositionTable(spec.cpe_max // spec.patch, spec.width, spec.position_dropout)
        tokens = spec.summary_tokens + spec.registers
        self.tokens = nn.Parameter(torch.randn(tokens, spec.width) / math.sqrt(spec.width))

    def forward(self, images: Tensor, frames: int = 1) -> Tensor:
        """B×3×H×W → B×(T+R+N)×D; `frames`: see `PositionTable`."""
        grid = images.shape[2] // self.patch, images.shape[3] // self.patch
        embedded = self.embedder(images)
        batch = images.shape[0]  # no len(): it would fix the batch of an exported graph
        embedded = embedded + self.positions(batch, grid, frames).to(embedded.dtype)
        tokens = self.tokens.to(embedded.dtype).expand(batch, -1, -1)
        return torch.cat([tokens, embedded], dim=1)
