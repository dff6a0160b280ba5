"""FeatUp: the map by joint bilateral upsampling alone, with a learned linear correction of what comes out.

FeatUp's feed-forward variant (Fu et al., arXiv 2403.10516, §3.2), at any integer factor and from PHI-S space. Its
dropouts and its correction of each kernel are left out.
"""

from __future__ import annotations

from torch import Tensor, nn

from featsharp.config import SharpenerConfig
from featsharp.jbu import JbuStack
from featsharp.upsamplers.base import Upsampler

SHARE = 0.1  # of the correction in the result, as published


class FeatUp(Upsampler):
    """A JBU level a prime of the factor, then x + 0.1 · conv1×1(x). 1186 parameters a level and C² + C."""

    needs_tiles = False

    def __init__(self, width: int, config: SharpenerConfig):
        super().__init__(width, config)
        self.jbu = JbuStack(config.factor, config.jbu)
        self.correction = None
        if config.featup.correction:
            self.correction = nn.Conv2d(width, width, 1)
            nn.init.zeros_(self.correction.weight)  # begins as the JBU alone
            nn.init.zeros_(self.correction.bias)
        self.keeps_constants = self.correction is None

    def forward(self, low: Tensor, tiles: Tensor | None, image: Tensor) -> Tensor:
        x = self.jbu(low, image)
        return x if self.correction is None else x + SHARE * self.correction(x)
