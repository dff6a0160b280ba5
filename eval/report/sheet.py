"""Turns columns of pictures, each under its title, into one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP, TEXT, LEADING = 6, 13, 16  # pixels: between pictures, of letters, between lines of a title
MOST_LINES = 3
SIGNS = "_-/:+"  # a name may be broken after these


def sheet(columns: Sequence[tuple[str, Sequence[Image.Image | np.ndarray | None]]], cell: int) -> Image.Image:
    """(title, pictures) of each column → a sheet; every picture's longer side becomes `cell` pixels.

    Pictures are PIL images or uint8 H×W×3; None leaves a grey place. What is enlarged keeps its pixels as squares.
    Titles are broken where the column ends.
    """
    titles = [wrapped(title, cell) for title, _ in columns]
    top = GAP + LEADING * max(map(len, titles))
    rows = [[None if picture is None else _fitted(picture, cell) for picture in row]
            for row in zip(*(pictures for _, pictures in columns))]  # fmt: skip
    heights = [max((picture.height for picture in row if picture), default=cell) for row in rows]
    page = Image.new("RGB", (len(columns) * (cell + GAP) - GAP, top + sum(heights) + GAP * (len(rows) - 1)), "white")
    draw = ImageDraw.Draw(page)
    for number, title in enumerate(titles):
        for line, text in enumerate(title):
            below = max(map(len, titles)) - len(title)  # titles stand on the pictures
            draw.text((number * (cell + GAP), LEADING * (line + below)), text, fill="black", font=_font())
    for height, row in zip(heights, rows):
        for number, picture in enumerate(row):
            left = number * (cell + GAP)
            if picture is None:
                draw.rectangle((left, top, left + cell - 1, top + height - 1), fill="#e8ebee")
            else:
                page.paste(picture, (left, top))
        top += height + GAP
    return page


def wrapped(title: str, width: int) -> list[str]:
    """A title as lines of at most `width` pixels: broken at spaces or after a sign, else anywhere; cut after three."""
    lines, rest = [], title.strip()
    while rest:
        fits = next((end for end in range(len(rest), 1, -1) if _font().getlength(rest[:end]) <= width), 1)
        breaks = [at for at in range(1, fits + 1) if rest[at - 1] in SIGNS or rest[at : at + 1] == " "]
        end = fits if fits == len(rest) or not breaks else breaks[-1]
        lines, rest = [*lines, rest[:end]], rest[end:].lstrip()
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1][:-1] + "…"]
    return lines or [""]


@cache
def _font() -> ImageFont.FreeTypeFont:
    """matplotlib's DejaVu Sans: Pillow's own font has no × and few accents."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", TEXT)


def _fitted(picture: Image.Image | np.ndarray, cell: int) -> Image.Image:
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    scale = cell / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
