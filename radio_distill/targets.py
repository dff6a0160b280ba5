"""Images → what the student should say of them: every teacher's summary and PHI-S-normalised feature map.

Shapes: B images, D_s summary width, C a teacher's width, h w its grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from radio_distill.recipe import TeacherConfig
from teachers.features import Encoder, Features, Size
from teachers.phi_s import Moments, PhiS, cached_moments, fit


class Teacher:
    """A frozen encoder, its sharpened self where the recipe names one, and the normaliser both share.

    The normaliser belongs to the *unsharpened* teacher: a sharpened map lives in the same space, so students of
    either are measured on one scale and one head serves all streams.
    """

    def __init__(
        self, name: str, config: TeacherConfig, base: Encoder, sharp: Encoder | None, device: torch.device | str
    ):
        self.name, self.config, self.base, self.sharp = name, config, base, sharp
        self.phi_s = PhiS(base.dims.spatial).to(device)

    def encoder(self, sharpen: bool) -> Encoder:
        """The encoder that a stream uses."""
        return self.sharp if sharpen and self.sharp is not None else self.base

    def size(self, student_grid: Size, sharpen: bool) -> Size:
        """The image size this teacher is given beside a student of `student_grid`.

        A flexible teacher follows the student's grid, so that cells meet without resampling; a fixed one has its own.
        """
        encoder = self.encoder(sharpen)
        if not encoder.resolution_flexible:
            return encoder.native_size
        return student_grid[0] * encoder.patch_size, student_grid[1] * encoder.patch_size

    def targets(self, images: Tensor, sharpen: bool) -> Features:
        """Images B×3×H×W in [0, 1] → summary in the teacher's space, spatial in PHI-S space."""
        seen = self.encoder(sharpen)(images)
        return Features(seen.summary, self.phi_s(seen.spatial))


def load_teacher(name: str, config: TeacherConfig, device: torch.device | str, meta: bool = False) -> Teacher:
    """The teacher of a recipe's entry; raises `UserError` where weights or a sharpener are missing."""
    from teachers.catalogue import build

    base = build(config.encoder, weights=config.weights, meta=meta, device=device, **config.options)
    base.name = name
    sharp = None
    if config.sharpen != "none":
        from featsharp.sharpener import build as build_sharpener

        sharp = build_sharpener(config.sharpen, base, factor=config.factor, device=device)
    return Teacher(name, config, base, sharp, device)


def fit_statistics(
    teachers: Mapping[str, Teacher],
    batches: Callable[[], Iterable],
    sizes: Mapping[str, Size],
    *,
    cache: Path,
    note: str,
    count: int,
    precision: Callable[[], AbstractContextManager],
    device: torch.device | str,
    say: Callable[[str], None],
) -> None:
    """Fit every teacher's normaliser on its unsharpened features of `batches()`, or take it from the cache.

    `sizes` gives the image size of each teacher; `note` and `count` name the data, and with the identity key the cache.
    """
    for name, teacher in teachers.items():

        def see(teacher: Teacher = teacher, size: Size = sizes[name]) -> Moments:
            moments = Moments(teacher.base.dims.spatial, device=device)
            for batch in batches():
                with torch.no_grad(), precision():
                    moments.update(teacher.base(images_at(batch, size, device)).spatial)
            moments.all_reduce()
            return moments

        key = f"{note} at {sizes[name]}"
        moments = cached_moments(cache, teacher.base.identity, key, count, see, say)
        teacher.phi_s.load_state_dict(fit(moments).state_dict())


def images_at(batch, size: Size, device: torch.device | str) -> Tensor:
    """A batch's images at `size`, float in [0, 1] on `device`: as the loader cut them, else from its largest."""
    if size in batch.images:
        return batch.float(size, device)
    largest = batch.float(max(batch.images), device)
    return F.interpolate(largest, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
