"""Turns figures into bytes that a page can hold, and models into looks that tell them apart, in grey print too."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f")  # Okabe and Ito
LINES: tuple[Any, ...] = ("-", "--", "-.", (0, (9, 2)), (0, (4, 1, 1, 1, 1, 1)))  # dotted is chance
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p")
HATCHES = ("", "////", "....", "xxxx", "----")  # by line style, where a figure has bars
WIDTH = 4.6  # inches: narrow, so that its text is readable on a phone
WIDE_RANGE = 20.0  # Δ% beyond which small differences would vanish on a linear axis
INK, SOFT, GRID = "#1b1f24", "#57606a", "#dddddd"


@dataclass(frozen=True)
class Look:
    """How one model is drawn, in every figure of a report."""

    colour: str
    line: Any
    marker: str
    hatch: str = ""


BASELINE = Look("#000000", "-", "o")


def looks(models: Sequence[str], baseline: str) -> dict[str, Look]:
    """Model → its look: black for the baseline; no two of the others share colour, line and marker."""
    others = [model for model in models if model != baseline]
    found = {
        model: Look(
            COLOURS[number % len(COLOURS)], LINES[number % len(LINES)], MARKERS[number % len(MARKERS)],
            HATCHES[number // len(COLOURS) % len(HATCHES)],
        )
        for number, model in enumerate(others)
    }  # fmt: skip
    return found | {baseline: BASELINE}


def encode(figure: Figure, kind: str) -> bytes:
    """A figure as svg or png bytes, the same for the same figure."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "radio-distill", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that needs no network."""
    return f"data:image/{'svg+xml' if kind == 'svg' else kind};base64,{base64.b64encode(content).decode()}"
