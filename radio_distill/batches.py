"""Turns a reader's items into batches of views, passing over what cannot be decoded, up to a limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from radio_distill.tars import Item
from radio_distill.views import BadPicture, Batch, Crop, TooSmall, random_crop, render
from radio_distill.visits import Reader, Source
from teachers.errors import UserError
from teachers.features import Size
from teachers.seeding import numpy_rng

if TYPE_CHECKING:
    from radio_distill.recipe import StreamConfig

MIN_BAD = 20  # bad samples before their share is judged
BARREN_SAMPLES = 10_000  # samples of a source in a row that are of no use before a reader gives up
WINDOW = 2000  # samples over which the share of bad ones is judged, roughly


class BatchMaker:
    """Turns one reader's items into batches, and gives up when too few of them are any good."""

    def __init__(
        self,
        config: StreamConfig,
        stream: str,
        seed: int,
        sources: Sequence[Source],
        number: int,
        readers: int,
        start: dict,
    ):
        self._config, self._stream, self._seed, self._sources = config, stream, seed, sources
        # Made by the first batch: a maker that has not begun can be sent to a process, an open shard cannot.
        self._open = partial(Reader, sources, stream, seed, number, readers, config.shuffle, start)
        self._reader: Reader | None = None
        self._seen, self._bad, self._barren = start["seen"], start["bad"], list(start["barren"])
        self._faults: Counter[str] = Counter()  # by shard, since this process began: for the message
        self._examples: dict[str, list[str]] = {}

    def make(self, index: int, sizes: Sequence[Size]) -> tuple[Batch, dict[str, Any]]:
        """Batch number `index`, and this reader's state after it."""
        self._reader = self._reader or self._open()
        batch = empty(self._config.batch, sizes, self._stream, index)
        while len(batch.keys) < self._config.batch:
            self._take(batch, sizes[0][1] / sizes[0][0])
        state = {**self._reader.position(), "seen": self._seen, "bad": self._bad, "barren": list(self._barren)}
        return batch, state

    def _take(self, batch: Batch, aspect: float) -> None:
        item, source, visit = next(self._reader)
        config = self._config

        def choose(size: Size) -> Crop:
            rng = numpy_rng(self._seed, "crop", self._stream, self._sources[source].name, visit, item.index)
            shape = size[1] / size[0] if config.letterbox else aspect
            return random_crop(size, shape, config.scale, config.ratio, config.flip, rng)

        self._seen += 1
        self._barren[source] += 1
        try:
            fill(item, batch, choose, config.min_side, config.letterbox)
            self._barren[source] = 0
        except TooSmall:
            batch.too_small += 1
            self._stop_if_barren(source)
        except BadPicture as error:
            self._bad += 1
            self._faults[item.shard] += 1
            self._examples[item.shard] = [*self._examples.get(item.shard, []), note(batch, item, error)][-3:]
            self._stop_if_bad()
            self._stop_if_barren(source)
        if self._seen >= WINDOW:  # forget the distant past by halves, or a good first day would excuse a bad second
            self._seen, self._bad = self._seen // 2, self._bad // 2

    def _stop_if_bad(self) -> None:
        if self._bad >= MIN_BAD and self._bad > self._config.max_bad * self._seen:
            worst, count = self._faults.most_common(1)[0]
            raise UserError(
                f"stream '{self._stream}': {self._bad} of the last {self._seen} samples were bad; "
                f"the worst shard is {worst} with {count}: " + "; ".join(self._examples[worst]),
                expected=f"at most a share of {self._config.max_bad} (streams.{self._stream}.max_bad)",
                todo=f"python -m radio_distill.shards look '{worst}', then make that shard again or leave it out",
            )

    def _stop_if_barren(self, source: int) -> None:
        if self._barren[source] >= BARREN_SAMPLES:
            name = self._sources[source].name
            raise UserError(
                f"stream '{self._stream}': {self._barren[source]} samples in a row were of no use"
                + (f" in source '{name}'" if name else ""),
                expected=f"pictures with a shorter side ≥ streams.{self._stream}.min_side = {self._config.min_side}",
                todo="lower min_side, or give other shards (python -m radio_distill.shards look SHARDS shows them)",
            )


def empty(count: int, sizes: Sequence[Size], stream: str, index: int) -> Batch:
    """A batch with room for `count` samples at every size, and none yet."""
    images = {size: torch.empty(count, 3, *size, dtype=torch.uint8) for size in sizes}
    return Batch(images=images, keys=[], stream=stream, index=index)


def fill(item: Item, batch: Batch, choose: Callable, min_side: int = 0, letterbox: bool = False) -> None:
    """Write the item's views into the batch's next row, or raise `BadPicture` or `TooSmall`."""
    if item.picture is None:
        raise BadPicture(item.problem)
    row = len(batch.keys)
    text, extent = render(item.picture, choose, batch.images, row, min_side, letterbox)
    batch.keys.append(item.key)
    batch.crops.append(text)
    batch.extents[row] = torch.tensor(extent)


def note(batch: Batch, item: Item, error: BadPicture) -> str:
    """Record in the batch why a sample was passed over; returns the words."""
    text = f"{item.key}: {error}" if item.key else str(error)
    batch.skipped.setdefault(item.shard, []).append(text)
    return text
