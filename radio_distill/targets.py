"""Images → what the student should say of them: every teacher's summary and normalised feature map.

Shapes: B images, D_s summary width, C a teacher's width, h w its grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from radio_distill.mosaic import fits, seen_in_canvases
from radio_distill.recipe import TeacherConfig
from radio_distill.shifts import Window
from teachers.errors import UserError
from teachers.features import Encoder, Features, Size
from teachers.phi_s import PhiS

if TYPE_CHECKING:
    from radio_distill.teacher_cache import TeacherCache
    from radio_distill.views import Batch


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
        self.dispersion = torch.ones((), device=device)  # of the summaries, in rad²; see `losses.dispersion`
        if config.fit != "resize" and base.dims.summary is not None and config.summary_weight:
            raise UserError(
                f"teachers.{name}.fit: {config.fit} gives no summary of a picture, only of the whole canvas",
                expected=f"a teacher without a summary, or teachers.{name}.summary_weight: 0",
            )

    @property
    def has_summary_loss(self) -> bool:
        """Whether its summary is a target."""
        return self.base.dims.summary is not None and self.config.summary_weight > 0

    def encoder(self, sharpen: bool) -> Encoder:
        """The encoder that a stream uses."""
        return self.sharp if sharpen and self.sharp is not None else self.base

    def size(self, student_grid: Size, sharpen: bool) -> Size:
        """The image size this teacher is given beside a student of `student_grid`.

        A flexible teacher follows the student's grid, so that cells meet without resampling, and so does one that sees
        small images inside its canvas; else a fixed one has its own size.
        """
        encoder = self.encoder(sharpen)
        if self._in_canvas(encoder, student_grid) or (encoder.resolution_flexible and self.config.fit == "resize"):
            return student_grid[0] * encoder.patch_size, student_grid[1] * encoder.patch_size
        return encoder.native_size

    def _in_canvas(self, encoder: Encoder, grid: Size) -> bool:
        return self.config.fit != "resize" and fits(encoder, grid)

    def check_size(self, size: Size, sharpen: bool) -> None:
        """Raise `UserError` for images that it cannot be shown, of the size that the canvas takes where it has one."""
        encoder = self.encoder(sharpen)
        if not (self._in_canvas(encoder, encoder.grid(size)) and is_whole(size, encoder.patch_size)):
            encoder.check_size(size)

    def grid(self, student_grid: Size, sharpen: bool) -> Size:
        """The grid of its map beside a student of `student_grid`."""
        return self.encoder(sharpen).grid(self.size(student_grid, sharpen))

    def see(
        self,
        images: Tensor,
        sharpen: bool,
        cache: TeacherCache | None = None,
        crops: Sequence[str] = (),
        note: str = "",
    ) -> Features:
        """Images B×3×H×W in [0, 1] → summary and map in the teacher's own space.

        With `cache`, what was seen of the same crops is taken from there; `note` says what else decides the pixels.
        """
        encoder = self.encoder(sharpen)
        if images.shape[-2:] != encoder.native_size and self._in_canvas(encoder, encoder.grid(images.shape[-2:])):
            return Features(None, seen_in_canvases(encoder, images, several=self.config.fit == "mosaic"))
        if cache is None:
            return encoder(images)
        return cache.features(encoder, images, crops, note)

    def targets(self, images: Tensor, sharpen: bool) -> Features:
        """Images B×3×H×W in [0, 1] → summary in the teacher's space, map in the normalised one."""
        seen = self.see(images, sharpen)
        return Features(seen.summary, self.phi_s(seen.spatial))


def load_teacher(name: str, config: TeacherConfig, device: torch.device | str) -> Teacher:
    """The teacher of a recipe's entry; raises `UserError` where weights or a sharpener are missing."""
    from teachers.catalogue import build

    base = build(config.encoder, weights=config.weights, device=device, **config.options)
    base.name = name
    sharp = None
    if config.sharpen != "none":
        from featsharp.sharpener import build as build_sharpener

        sharp = build_sharpener(config.sharpen, base, factor=config.factor, device=device)
    return Teacher(name, config, base, sharp, device)


def is_whole(size: Size, patch: int) -> bool:
    """Whether patches tile images of `size`."""
    return min(size) > 0 and size[0] % patch == size[1] % patch == 0


def images_at(batch: Batch, window: Window, device: torch.device | str) -> Tensor:
    """What a network sees of a batch through its window, float in [0, 1] on `device`.

    As the loader cut the crop, else from its largest.
    """
    if window.base in batch.images:
        return window.cut(batch.float(window.base, device))
    largest = batch.float(max(batch.images), device)
    whole = F.interpolate(largest, size=window.base, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    return window.cut(whole)
