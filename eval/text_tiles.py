"""Turns lines of text into a small picture, for examples whose truth and answer are words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eval.examples import SIDE

MARGIN, SIZE = 6, 15  # pixels: around the text, of its letters
BLACK, GREEN, RED = (30, 30, 30), (0, 110, 50), (180, 30, 30)


def tile(lines: Sequence[tuple[str, tuple[int, int, int]]], side: int = SIDE) -> np.ndarray:
    """(text, colour) of each paragraph, wrapped, on white: side×side×3 uint8; what does not fit is cut off with `…`."""
    sheet = Image.new("RGB", (side, side), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(SIZE)
    height = SIZE + 4
    rows = [(row, colour) for text, colour in lines for row in wrapped(text, draw, font, side - 2 * MARGIN)]
    fits = (side - 2 * MARGIN) // height
    if len(rows) > fits:
        rows = [*rows[: fits - 1], ("…", BLACK)]
    for number, (row, colour) in enumerate(rows):
        draw.text((MARGIN, MARGIN + number * height), row, fill=colour, font=font)
    return np.asarray(sheet)


def wrapped(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Words of `text` in rows of at most `width` pixels; a longer word has a row of its own."""
    rows: list[str] = []
    for word in text.split():
        longer = f"{rows[-1]} {word}" if rows else word
        if rows and draw.textlength(longer, font=font) <= width:
            rows[-1] = longer
        else:
            rows.append(word)
    return rows
