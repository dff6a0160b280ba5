"""Images → patch embeddings by a few convolutions, in place of a ViT's one linear layer a patch.

A convolutional stem learns shapes from some ten thousand pictures, which a linear one does not (Xiao et al. 2021,
arXiv 2106.14881).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn


def stem_strides(patch: int) -> list[int]:
    """The prime factors of a patch size, small ones first: 8 → 2, 2, 2; 14 → 2, 7."""
    factors, rest, prime = [], patch, 2
    while rest > 1:
        while rest % prime == 0:
            factors.append(prime)
            rest //= prime
        prime += 1
    return factors


def conv_stem(
    strides: Sequence[int], width: int, norm: Callable[[int], nn.Module], kernels: Sequence[int] | None = None
) -> nn.Sequential:
    """B×3×H×W → B×width×h×w, where h = H / Π strides: a convolution a stride, channels doubling towards `width`.

    Sides must be multiples of the product. Kernels are 3×3 at stride 2 (as in the paper) and stride + 2 above, so that
    neighbours overlap and the last row of pixels is seen.
    """
    kernels = kernels or [3 if stride == 2 else stride + 2 for stride in strides]
    layers, channels = [], 3
    for number, (stride, kernel) in enumerate(zip(strides, kernels, strict=True), start=1):
        out = max(1, width >> (len(strides) - number))
        layers += [nn.Conv2d(channels, out, kernel, stride, 1, bias=False), norm(out), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))
