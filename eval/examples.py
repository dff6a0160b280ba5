"""Turns a task's examples into one PNG beside its score, and back: rows of picture, truth and answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from eval.kept import examples_file
from eval.tasks.task import EXAMPLES, Example

SIDE = 160  # pixels of an example's longer side, at most
ROWS = ("picture", "truth", "answer")


def save_examples(examples: Sequence[Example], score: Path) -> None:
    """Write the sheet of a score; one that an earlier run left is removed where there are no examples now."""
    file = examples_file(score)
    if not examples:
        file.unlink(missing_ok=True)
        return
    cells = [[_fitted(getattr(example, row)) for example in examples] for row in ROWS]
    height = max(cell.shape[0] for row in cells for cell in row)
    width = max(cell.shape[1] for row in cells for cell in row)
    sheet = np.full((height * len(ROWS), width * len(examples), 3), 255, np.uint8)
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            sheet[y * height : y * height + cell.shape[0], x * width : x * width + cell.shape[1]] = cell
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    told = PngImagePlugin.PngInfo()
    told.add_text("examples", str(len(examples)))
    Image.fromarray(sheet).save(temporary, "PNG", optimize=True, pnginfo=told)
    os.replace(temporary, file)


def load_examples(score: Path) -> dict[str, list[Image.Image]] | None:
    """Row name → its examples; None where the score has none, or where they cannot be read."""
    try:
        with Image.open(examples_file(score)) as opened:
            count, sheet = int(opened.info.get("examples", EXAMPLES)), opened.convert("RGB")
    except (OSError, ValueError):
        return None
    height, width = sheet.height // len(ROWS), sheet.width // count
    return {
        row: [sheet.crop((x * width, y * height, (x + 1) * width, (y + 1) * height)) for x in range(count)]
        for y, row in enumerate(ROWS)
    }


def _fitted(pixels: np.ndarray) -> np.ndarray:
    """H×W×3 at most SIDE pixels a side, the aspect kept."""
    scale = SIDE / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    size = max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[0] * scale), 1)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
