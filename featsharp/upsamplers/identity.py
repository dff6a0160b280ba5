"""Identity: leaves the map as it is, at factor 1; what a learned position bias does alone."""

from __future__ import annotations

from torch import Tensor

from featsharp.config import SharpenerConfig
from featsharp.upsamplers.base import Upsampler
from teachers.errors import UserError


class Identity(Upsampler):
    """The teacher's own map. 0 parameters."""

    needs_tiles = False
    keeps_constants = True

    def __init__(self, width: int, config: SharpenerConfig):
        super().__init__(width, config)
        if config.factor != 1:
            raise UserError(
                f"the upsampler 'identity' cannot enlarge by {config.factor}",
                expected="factor 1",
                todo="set the sharpener's factor to 1, or take bilinear",
            )

    def forward(self, low: Tensor, tiles: Tensor | None, image: Tensor) -> Tensor:
        return low
