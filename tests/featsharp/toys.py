"""Tiny teachers and batches for the tests of the sharpener."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teachers.catalogue import build
from teachers.features import Dims, Encoder, Features, Size
from teachers.seeding import torch_rng


def random_teacher(size: Size = (48, 64), seed: int = 0, width: int = 32) -> Encoder:
    """A rectangular random teacher: 6×8 cells of 8 pixels."""
    return build("random", patch=8, width=width, depth=1, image_size=list(size), seed=seed)


class NoisyColours(Encoder):
    """Mean colours of patches, mixed into C channels, plus noise that sticks to the grid."""

    name, patch_size, resolution_flexible, licence, identity = "colours", 4, False, "none", "colours"

    def __init__(self, grid: Size, channels: int = 6, noise: float = 0.3):
        super().__init__()
        self.native_size = (4 * grid[0], 4 * grid[1])
        self.dims = Dims(None, channels)
        rng = torch_rng("colours")
        self.mix = nn.Conv2d(3, channels, 1, bias=False).requires_grad_(False)
        self.mix.weight.copy_(torch.randn(channels, 3, 1, 1, generator=rng))
        self.noise = noise * torch.randn(1, channels, *grid, generator=rng)

    def forward(self, images: Tensor) -> Features:
        self.check(images)
        return Features(None, self.mix(nn.functional.avg_pool2d(images, 4)) + self.noise)


class Counting(nn.Module):
    """An encoder that counts its calls and the images in them."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder, self.calls = encoder, []

    def forward(self, images: Tensor) -> Features:
        self.calls.append(len(images))
        return self.encoder(images)


class Pictures:
    """A batch of smooth random pictures, as the loader's."""

    def __init__(self, size: Size, count: int, number: int):
        rng = torch_rng("pictures", number)
        coarse = torch.rand(count, 3, size[0] // 6 + 2, size[1] // 6 + 2, generator=rng)
        smooth = nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
        self.images = {size: (smooth * 255).round().byte()}

    def float(self, size: Size) -> Tensor:
        return self.images[size].float() / 255


def with_gradients(out: Tensor, wanted: list[Tensor]) -> list[Tensor]:
    """`out`, and the gradients of a fixed random projection of it."""
    upstream = torch.randn(out.shape, generator=torch_rng("upstream"), dtype=out.dtype)
    return [out, *torch.autograd.grad(out, wanted, upstream)]


def attention_pieces(monkeypatch) -> list[int]:
    """Filled, from now on, with the fine cells of every piece of cross attention."""
    import featsharp.cross_attention as module

    pieces, attend = [], module.attend
    monkeypatch.setattr(module, "attend", lambda q, *rest: pieces.append(q.shape[0] * q.shape[1]) or attend(q, *rest))
    return pieces
