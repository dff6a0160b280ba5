"""Turns feature maps into colours by a PCA that several maps share, and labelled pictures into one panel.

A basis is fitted once for a teacher's space, saved, and used for the teacher's low map, its sharpened map and the
student's prediction alike: equal colours then mean equal features. Shapes: D channels, h w grid cells.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Picture = Image.Image | np.ndarray | Tensor

MARGIN, TEXT = 6, 12  # pixels: around a picture, height of its title's letters


class PcaBasis:
    """Three principal axes of feature vectors, and the range of each that is shown as 0..255."""

    def __init__(self, mean: Tensor, axes: Tensor, low: Tensor, high: Tensor):
        self.mean, self.axes, self.low, self.high = mean, axes, low, high  # D, 3×D, 3, 3

    @classmethod
    def fit(cls, maps: Iterable[Tensor]) -> PcaBasis:
        """Fit on the cells of all `maps` together (each D×h×w or B×D×h×w); the range shown is their 1 % to 99 %."""
        cells = torch.cat([features.detach().cpu().double().movedim(-3, -1).flatten(0, -2) for features in maps])
        mean = cells.mean(0)
        cells = cells - mean
        _, vectors = torch.linalg.eigh(cells.T @ cells)
        axes = vectors.T.flip(0)[:3]
        largest = axes.abs().argmax(1, keepdim=True)
        axes = torch.where(axes.gather(1, largest) < 0, -axes, axes)  # a principal axis has no sign of its own
        axes = torch.cat([axes, axes.new_zeros(3 - len(axes), axes.shape[1])])  # fewer than 3 channels: black
        low, high = np.percentile((cells @ axes.T).numpy(), [1, 99], axis=0)
        return cls(mean.float(), axes.float(), torch.from_numpy(low).float(), torch.from_numpy(high).float())

    def to_rgb(self, features: Tensor) -> np.ndarray:
        """D×h×w → uint8 h×w×3."""
        colours = (features.detach().cpu().float().movedim(-3, -1) - self.mean) @ self.axes.T
        colours = (colours - self.low) / (self.high - self.low).clamp(min=1e-12)
        return colours.clamp(0, 1).mul(255).round().byte().numpy()

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, whole or not at all."""
        from safetensors.torch import save_file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        save_file({key: value.contiguous() for key, value in vars(self).items()}, temporary)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path | str) -> PcaBasis:
        from safetensors.torch import load_file

        return cls(**load_file(path))


def panel(rows: Sequence[Sequence[tuple[str, Picture | None]]], cell: int = 160) -> Image.Image:
    """Rows of (title, picture) → one image; every picture's longer side becomes `cell` pixels.

    A picture is a PIL image, uint8 h×w×3, or a tensor 3×h×w in [0, 1]; None leaves its place empty. What is smaller
    than its place is enlarged without smoothing, so that each grid cell stays a visible square.
    """
    places = [[(title, None if picture is None else _fitted(picture, cell)) for title, picture in row] for row in rows]
    heights = [max((image.height for _, image in row if image), default=cell) for row in places]
    width = MARGIN + max((len(row) for row in places), default=0) * (cell + MARGIN)
    height = MARGIN + sum(high + TEXT + 2 * MARGIN for high in heights)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    top = MARGIN
    for row, high in zip(places, heights):
        for column, (title, image) in enumerate(row):
            left = MARGIN + column * (cell + MARGIN)
            draw.text((left, top), _shortened(title, font, cell), fill="black", font=font)
            if image:
                sheet.paste(image, (left, top + TEXT + MARGIN // 2))
        top += high + TEXT + 2 * MARGIN
    return sheet


def _fitted(picture: Picture, cell: int) -> Image.Image:
    image = _as_image(picture)
    scale = cell / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def _as_image(picture: Picture) -> Image.Image:
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    return picture.convert("RGB")


def _font() -> ImageFont.FreeTypeFont:
    """matplotlib's DejaVu Sans: Pillow's own font has no × and few accents."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", TEXT)


def _shortened(title: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(title) <= width:
        return title
    while title and font.getlength(title + "…") > width:
        title = title[:-1]
    return title + "…"
