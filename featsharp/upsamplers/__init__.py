"""The shelf of upsamplers: a name → how a teacher's map is enlarged. One file each, one line here."""

from __future__ import annotations

from featsharp.config import SharpenerConfig
from featsharp.upsamplers.anyup import AnyUp
from featsharp.upsamplers.base import Upsampler
from featsharp.upsamplers.bilinear import Bilinear
from featsharp.upsamplers.carafe import Carafe
from featsharp.upsamplers.featsharp import FeatSharp
from featsharp.upsamplers.featsharp_release import FeatSharpRelease
from featsharp.upsamplers.featsharp_slim import FeatSharpSlim
from featsharp.upsamplers.featup import FeatUp
from featsharp.upsamplers.identity import Identity
from featsharp.upsamplers.jafar import Jafar
from featsharp.upsamplers.naf import Naf
from featsharp.upsamplers.nearest import Nearest
from featsharp.upsamplers.progressive import Progressive
from featsharp.upsamplers.resfu import ReSfu
from featsharp.upsamplers.s2 import S2
from featsharp.upsamplers.sapa import Sapa
from featsharp.upsamplers.tile import Tile
from teachers.errors import UserError

UPSAMPLERS: dict[str, type[Upsampler]] = {
    "featsharp": FeatSharp,
    "featsharp_release": FeatSharpRelease,
    "featsharp_slim": FeatSharpSlim,
    "tile": Tile,
    "bilinear": Bilinear,
    "nearest": Nearest,
    "identity": Identity,
    "s2": S2,
    "featup": FeatUp,
    "carafe": Carafe,
    "sapa": Sapa,
    "resfu": ReSfu,
    "jafar": Jafar,
    "anyup": AnyUp,
    "naf": Naf,
}


def build_upsampler(config: SharpenerConfig, width: int) -> Upsampler:
    """The upsampler that `config.upsampler` names, for maps of `width` channels."""
    if config.upsampler not in UPSAMPLERS:
        raise UserError(f"unknown upsampler '{config.upsampler}'", expected="one of " + ", ".join(UPSAMPLERS))
    kind = UPSAMPLERS[config.upsampler]
    return Progressive(width, config, kind) if config.progressive else kind(width, config)
