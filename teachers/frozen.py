"""What the encoder families share: a frozen network behind the `Encoder` contract, and its dtype.

A family's class builds its network, calls `declare` and implements `encode`; checking, whitening, precision, gradients
and identity stand here once.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
from torch import Tensor, nn

from teachers.errors import UserError
from teachers.features import Dims, Encoder, Features, Size, Whiten, identity_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenEncoder(Encoder):
    """An encoder that stays in eval mode, needs no gradient, runs in its weights' dtype and answers in fp32."""

    network: nn.Module  # the image tower: all that makes `Features`
    whiten: Whiten  # kept in fp32 whatever the network's dtype

    def declare(
        self,
        *,
        name: str,
        patch_size: int,
        native_size: Size,
        resolution_flexible: bool,
        dims: Dims,
        licence: str,
        notes: tuple[object, ...] = (),
    ) -> None:
        """Set what the contract asks for, and freeze; `notes`: what else changes the output (a layer, a size)."""
        self.name, self.licence, self.dims = name, licence, dims
        self.patch_size, self.native_size, self.resolution_flexible = patch_size, native_size, resolution_flexible
        self._notes = notes
        self.eval().requires_grad_(False)

    @cached_property
    def identity(self) -> str:
        tensors = {**self.network.state_dict(prefix="network."), **self.whiten.state_dict(prefix="whiten.")}
        return identity_of(tensors, type(self).__name__, *self._notes)

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in eval mode, also as a part of a module in training: batch norm and dropout must not wake up."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        self.check(images)
        whitened = self.whiten(images.float()).to(next(self.network.parameters()).dtype)
        summary, spatial = self.encode(whitened)
        return Features(None if summary is None else summary.float(), spatial.float())

    def encode(self, whitened: Tensor) -> tuple[Tensor | None, Tensor]:
        """Whitened images in the network's dtype → summary `B×D_s` or None, spatial `B×D×h×w`."""
        raise NotImplementedError


def on_meta(meta: bool) -> AbstractContextManager:
    """Inside, tensors are made on the meta device (shapes without memory) if `meta`."""
    return torch.device("meta") if meta else nullcontext()


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """`"bf16"` or a torch dtype → the torch dtype."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UserError(f"unknown encoder dtype '{dtype}'", expected="one of " + ", ".join(DTYPES))
    return DTYPES[dtype]


def as_size(size: int | list[int] | tuple[int, ...]) -> Size:
    """A side or `[height, width]` → `(height, width)`."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise UserError(f"image_size={size!r} is no image size", expected="pixels: one number, or [height, width]")
    return sides
