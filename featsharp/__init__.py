"""A teacher's coarse feature map → a sharper one.

    from featsharp import sharpen
    from teachers.catalogue import build

    teacher = build("tabletop_clip")                                # 64 px → an 8×8 map
    sharp = sharpen(teacher, "runs/featsharp/tabletop_clip_2x")     # 128 px → 16×16, in the teacher's own space
    summary, spatial = sharp(images)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featsharp.sharpener import Sharpener
    from teachers.features import Encoder


def sharpen(encoder: Encoder, adapter: str | Path, factor: int = 2) -> Sharpener:
    """`encoder` with a finer map: an `Encoder` of images `factor` times as large, on the encoder's device.

    Args:
        adapter: the folder of a trained sharpener or of its run, or "bilinear", "tile" or "s2", which learn nothing.
        factor: for those three, 1 to 14; a trained one knows its own.

    Raises `UserError` where there is no such sharpener, where it was trained for another teacher (naming both), and
    for a factor that cannot be.
    """
    from featsharp import sharpener

    device = next((tensor.device for tensor in (*encoder.parameters(), *encoder.buffers())), "cpu")
    return sharpener.build(adapter, encoder, factor, device)
