"""The contract of the house: an `Encoder` turns images into `Features(summary, spatial)` and says what it is.

A teacher, a sharpened teacher and an exported student are all encoders, so whatever takes one takes the others.

Shapes: B images, H W pixels, h w grid cells, D_s summary width, D spatial width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from teachers.errors import UserError

Size = tuple[int, int]  # (height, width)


class Features(NamedTuple):
    """What an encoder sees in a batch of images."""

    summary: Tensor | None  # B×D_s fp32, None where the encoder has none (SAM)
    spatial: Tensor  # B×D×h×w fp32


@dataclass(frozen=True)
class Dims:
    """Widths of an encoder's outputs."""

    summary: int | None
    spatial: int


class Encoder(nn.Module):
    """Images `B×3×H×W`, float in [0, 1] → `Features`.

    An encoder normalises inside, runs on the device and in the dtype its weights are in, and returns fp32. A subclass
    sets the attributes below, implements `forward` (calling `self.check(images)` first) and, where it can embed text,
    `encode_text`.
    """

    name: str  # the catalogue's, or what the user calls it
    patch_size: int  # pixels a grid cell covers along each axis (a CNN's: the stride of the layer taken)
    native_size: Size  # the size it was trained at
    resolution_flexible: bool  # True: any multiple of patch_size; False: native_size only
    dims: Dims
    licence: str  # of the weights, as its publisher names it
    identity: str  # hash of weights + preprocessing (`identity_of`): the key of every cached statistic or feature

    def forward(self, images: Tensor) -> Features:
        raise NotImplementedError

    @property
    def has_text(self) -> bool:
        """Whether `encode_text` works: there is a text tower in the space of the summary."""
        return False

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts → `N×D_s` fp32 of unit length, in the space of `Features.summary`."""
        raise UserError(f"{self.name} has no text tower", expected="an encoder with has_text (a CLIP or a SigLIP)")

    def grid(self, size: Size) -> Size:
        """The `(h, w)` of `Features.spatial` for images of `size`."""
        return size[0] // self.patch_size, size[1] // self.patch_size

    def check_size(self, size: Size) -> None:
        """Raise `UserError` for a size that this encoder cannot take."""
        height, width = size
        if not self.resolution_flexible and size != self.native_size:
            raise UserError(
                f"{self.name} cannot take images of {height}×{width}",
                expected="{}×{} exactly (its size is fixed)".format(*self.native_size),
            )
        if height % self.patch_size or width % self.patch_size or height < 1 or width < 1:
            raise UserError(
                f"{self.name} cannot take images of {height}×{width}",
                expected=f"positive multiples of its patch size {self.patch_size} in both directions",
            )

    def check(self, images: Tensor) -> None:
        """Raise `UserError` for a batch that this encoder cannot take."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise UserError(
                f"{self.name} got a {images.dtype} tensor of shape {tuple(images.shape)}",
                expected="B×3×H×W, floating point, values in [0, 1]",
            )
        self.check_size((images.shape[2], images.shape[3]))


class Whiten(nn.Module):
    """`(x − mean) / std` a channel: the preprocessing that a teacher was trained with, kept as buffers."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def has_values(tensor: Tensor) -> bool:
    """Whether there are numbers in the tensor: there are none on the meta device and in torch's FakeTensors."""
    return tensor.device.type != "meta" and not isinstance(tensor, FakeTensor)


def identity_of(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], *notes: object) -> str:
    """A 16-digit hash of named tensors (whatever their device) and of everything else that changes the output.

    Tensors without values (`has_values`) count by name, shape and dtype alone.
    """
    digest = hashlib.sha256()
    items = tensors.items() if isinstance(tensors, Mapping) else tensors
    for name, tensor in sorted(items, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if has_values(tensor):
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for note in notes:
        digest.update(repr(note).encode())
    return digest.hexdigest()[:16]
