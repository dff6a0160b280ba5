"""S2: the mean of the enlarged map of the whole and of the map of the tiles; both scales, nothing learned.

Scaling on Scales (Shi et al., arXiv 2403.13043) lays the scales side by side along the channels. Here they are
averaged at the finer size: the map keeps the teacher's width, so that it can be compared with the teacher's maps.
"""

from __future__ import annotations

from torch import Tensor

from featsharp.upsamplers.base import Upsampler, enlarge


class S2(Upsampler):
    """Scales 1 and f, in equal shares. 0 parameters."""

    needs_tiles = True
    keeps_constants = True

    def forward(self, low: Tensor, tiles: Tensor | None, image: Tensor) -> Tensor:
        return (enlarge(low, self.factor) + tiles) / 2
