"""Nearest: every cell of the map repeated; what an upsampler must beat before it may be said to sharpen.

Fidelity asks for the teacher's cells back, and repeated cells give them back whole: so it ranks this above bilinear,
though nothing in it is finer than the teacher's map.
"""

from __future__ import annotations

from torch import Tensor

from featsharp.upsamplers.base import Upsampler, enlarge


class Nearest(Upsampler):
    """Blocks of f×f equal cells. 0 parameters."""

    needs_tiles = False
    keeps_constants = True

    def forward(self, low: Tensor, tiles: Tensor | None, image: Tensor) -> Tensor:
        return enlarge(low, self.factor, "nearest")
