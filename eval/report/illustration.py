"""Turns figures and picture sheets into what a page shows: bytes, a caption, and words for those who cannot see it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from eval.plots import data_uri, encode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUALITY = {"png": {"optimize": True}, "webp": {"quality": 85, "method": 6}}


@dataclass(frozen=True)
class Illustration:
    """A picture of the report."""

    name: str  # of its file, without ending
    caption: str
    alt: str  # for those who cannot see it
    kind: str  # of the file beside report.md: png or webp
    content: bytes  # of that file
    uri: str  # for report.html
    layout: str  # chart: as wide as a phone; sheet: its own width, scrolled

    @property
    def file(self) -> str:
        return f"{self.name.replace(' ', '_')}.{self.kind}"


def chart(name: str, figure: Figure, caption: str, alt: str) -> Illustration:
    """A figure: lines in the page, pixels beside the markdown (which some readers show without SVG)."""
    return Illustration(
        name, caption, alt, "png", encode(figure, "png"), data_uri(encode(figure, "svg"), "svg"), "chart"
    )


def pictures(name: str, sheet: Image.Image, caption: str, alt: str, kind: str = "png") -> Illustration:
    """A sheet of pictures: png where cells must stay exact, webp where photographs would make it large."""
    buffer = io.BytesIO()
    sheet.save(buffer, kind.upper(), **QUALITY[kind])
    content = buffer.getvalue()
    return Illustration(name, caption, alt, kind, content, data_uri(content, kind), "sheet")
