"""Turns shards into what one wants to know before training on them: samples, sizes, faults, a contact sheet."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from radio_distill import tars
from radio_distill.views import BadPicture, load, open_picture, to_rgb

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL, COLUMNS = 128, 8  # pixels, pictures a row of the sheet


@dataclass
class Seen:
    """What `look` found."""

    good: Counter[str] = field(default_factory=Counter)  # by shard
    faults: dict[str, list[str]] = field(default_factory=dict)  # shard → why samples are bad
    sides: list[tuple[int, int]] = field(default_factory=list)  # shorter, longer side of every good picture
    bytes: int = 0
    thumbnails: list[Image.Image] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The findings in words."""
        shards = counted(len({*self.good, *self.faults}), "shard")
        lines = [f"{sum(self.good.values())} pictures in {shards}, {self.bytes / 1e6:.1f} MB of pictures"]
        if self.sides:
            short, longest = [side for side, _ in self.sides], max(side for _, side in self.sides)
            lines.append(f"shorter side {min(short)} to {max(short)} px, median {median(short):.0f}; longest {longest}")
            lines.append(f"pictures a shard: {min(self.good.values())} to {max(self.good.values())}")
        bad = sum(len(reasons) for reasons in self.faults.values())
        lines.append(counted(bad, "bad sample") + (":" if bad else ""))
        for shard, reasons in self.faults.items():
            lines += [f"  {shard}: {reason}" for reason in reasons[:5]]
            lines += [f"  {shard}: and {len(reasons) - 5} more"] if len(reasons) > 5 else []
        return lines


def counted(number: int, thing: str) -> str:
    """`3 shards`, `1 shard`."""
    return f"{number} {thing}" + "s" * (number != 1)


def look(shards: str | Sequence[str], limit: int | None = None, thumbnails: int = 0) -> Seen:
    """Decode every picture of the shards (the first `limit` of all), keeping the first few as thumbnails."""
    from rich.progress import track

    seen = Seen()
    for shard in track(tars.resolve(shards, "SHARDS"), "reading", transient=True, disable=not sys.stdout.isatty()):
        for item in tars.read(shard):
            if limit is not None and sum(seen.good.values()) >= limit:
                return seen
            try:
                _note(seen, item, thumbnails)
            except BadPicture as error:
                seen.faults.setdefault(shard, []).append(f"{item.key}: {error}" if item.key else str(error))
    return seen


def _note(seen: Seen, item: tars.Item, thumbnails: int) -> None:
    if item.picture is None:
        raise BadPicture(item.problem)
    picture, size = open_picture(item.picture)
    picture = load(picture)
    seen.good[item.shard] += 1
    seen.sides.append((min(size), max(size)))
    seen.bytes += len(item.picture)
    if len(seen.thumbnails) < thumbnails:
        picture = to_rgb(picture)
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        seen.thumbnails.append(picture)


def sheet(thumbnails: Sequence[Image.Image], path: Path) -> None:
    """Write the thumbnails as one picture."""
    from PIL import Image

    cell, rows = THUMBNAIL + 4, math.ceil(len(thumbnails) / COLUMNS)
    page = Image.new("RGB", (cell * min(COLUMNS, len(thumbnails)), cell * rows), "white")
    for place, picture in enumerate(thumbnails):
        row, column = divmod(place, COLUMNS)
        page.paste(picture, (column * cell + (cell - picture.width) // 2, row * cell + (cell - picture.height) // 2))
    page.save(path)
