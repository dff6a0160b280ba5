"""Turns sources of shards into each reader's endless, shuffled row of items: a function of seed and position alone.

A *visit* is one reading of a shard. A source's shards are permuted anew every epoch, which makes an endless row of
visits; reader r of R takes the visits r, r + R, r + 2R, ..., so no two readers ever share one. Where there are
fewer shards than readers, a shard is read in `parts` interleaved parts (every parts-th sample), each a visit of its
own: then too, readers see different samples within an epoch, at the price of reading the tar once a part.

A reader collects its visits into *blocks* of `shuffle` items, permutes each block and hands it out. A position is
therefore (where the block began, its number, how much of it is used): to go on, at most one block is read again, and
nothing that was already handed out is decoded again. A block ends early where an epoch does (except in a mix, whose
sources have epochs of different lengths), so that no picture comes twice in a block.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from radio_distill import tars
from radio_distill.tars import Item
from teachers.errors import UserError
from teachers.seeding import numpy_rng

if TYPE_CHECKING:
    from radio_distill.recipe import StreamConfig

BARREN_VISITS = 20  # shards in a row without a picture after which a reader gives up


@dataclass(frozen=True)
class Source:
    """Shards that are drawn from together; `weight` is its share of the stream's samples."""

    name: str
    shards: tuple[str, ...]
    weight: float = 1.0

    @property
    def fingerprint(self) -> str:
        """Eight digits that change with the list of shards."""
        return hashlib.sha256("\n".join(self.shards).encode()).hexdigest()[:8]


class Taken(NamedTuple):
    """An item, and where in the stream it stands."""

    item: Item
    source: int
    visit: int


def sources_of(config: StreamConfig, where: str) -> list[Source]:
    """The sources of a stream: one, or those of its weighted mix."""
    if not isinstance(config.shards, dict):
        return [Source("", tuple(tars.resolve(config.shards, f"{where}.shards")))]
    mix = config.shards.items()
    return [Source(name, tuple(tars.resolve(one.shards, f"{where}.shards.{name}")), one.weight) for name, one in mix]


class Deal:
    """The endless row of visits of one source, and which are whose."""

    def __init__(self, source: Source, stream: str, seed: int, readers: int):
        self.shards = source.shards
        self.parts = -(-readers // len(source.shards))
        self.units = len(source.shards) * self.parts  # visits an epoch
        self._seeds = (seed, "shards", stream, source.name)
        self._order = lru_cache(2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        return numpy_rng(*self._seeds, epoch).permutation(self.units)

    def at(self, visit: int) -> tuple[str, int]:
        """The shard of a visit, and which part of it."""
        epoch, place = divmod(visit, self.units)
        shard, part = divmod(int(self._order(epoch)[place]), self.parts)
        return self.shards[shard], part


class Reader:
    """One reader's items, block after block.

    Args:
        reader, readers: which of how many.
        shuffle: items a block.
        start: where to begin, as `position` returned it, or as `fresh` makes it.
        read: `tars.read`, or a stand-in.
    """

    def __init__(
        self, sources: Sequence[Source], stream: str, seed: int, reader: int, readers: int, shuffle: int, start: dict,
        read: Callable[..., Iterator[Item]] = tars.read,
    ):  # fmt: skip
        self._sources, self._stream, self._seed, self._shuffle, self._read = sources, stream, seed, shuffle, read
        self._reader, self._readers = reader, readers
        self._deals = [Deal(source, stream, seed, readers) for source in sources]
        weights = np.array([source.weight for source in sources], dtype=float)
        self._weights = weights / weights.sum()
        self._number, self._used = start["block"], start["used"]
        self._cursors = [tuple(cursor) for cursor in start["cursors"]]
        self._rows = [self._row(index, *cursor) for index, cursor in enumerate(self._cursors)]
        self._block: list[Taken | None] | None = None
        self._began = list(self._cursors)  # where the block in hand begins

    def position(self) -> dict:
        """Where this reader stands; `reach` is the last visit of each source that it has touched."""
        return {
            "block": self._number,
            "used": self._used,
            "cursors": [list(cursor) for cursor in self._began],
            "reach": [visit for visit, _ in self._cursors],
        }

    def __next__(self) -> Taken:
        if self._block is None:
            self._block = self._collect()
        if self._used == len(self._block):
            self._number, self._used, self._began = self._number + 1, 0, list(self._cursors)
            self._block = self._collect()
        taken, self._block[self._used] = self._block[self._used], None  # a used item need not wait for its block
        self._used += 1
        return taken

    def _collect(self) -> list[Taken]:
        rng = numpy_rng(self._seed, "block", self._stream, self._reader, self._number)
        if len(self._rows) == 1:
            row = itertools.dropwhile(_epoch_end, self._rows[0])
            block = list(itertools.takewhile(_same_epoch, itertools.islice(row, self._shuffle)))
        else:
            counts = rng.multinomial(self._shuffle, self._weights)
            rows = (itertools.islice(filter(_same_epoch, row), count) for row, count in zip(self._rows, counts))
            block = list(itertools.chain.from_iterable(rows))
        return [block[place] for place in rng.permutation(len(block))]

    def _row(self, source: int, visit: int, index: int) -> Iterator[Taken | None]:
        """Items of a source from (visit, index) on, without end; None where an epoch ends."""
        deal, barren = self._deals[source], 0
        while True:
            shard, part = deal.at(visit)
            fruitful, problem = index > 0, None
            for item in self._read(shard, index, part, deal.parts):
                fruitful, problem = fruitful or item.picture is not None, item.problem or problem
                self._cursors[source] = (visit, item.index + 1)
                yield Taken(item, source, visit)
            barren = 0 if fruitful else barren + (problem is not None)
            if barren == BARREN_VISITS:
                raise UserError(
                    f"stream '{self._stream}': {barren} shards in a row gave no picture; the last, {shard}, {problem}",
                    expected="tar shards of samples like 0001.jpg (and 0001.txt, ...)",
                    todo=f"python -m radio_distill.shards look '{shard}'",
                )
            epoch, visit, index = visit // deal.units, visit + self._readers, 0
            self._cursors[source] = (visit, 0)
            if visit // deal.units != epoch:
                yield None


def _same_epoch(taken: Taken | None) -> bool:
    return taken is not None


def _epoch_end(taken: Taken | None) -> bool:
    return taken is None


def fresh(sources: Sequence[Source], reader: int, origins: Sequence[int] | None = None, block: int = 0) -> dict:
    """The position of a reader that begins at visit `origins` + its number, of each source."""
    origins = origins or [0] * len(sources)
    return {"block": block, "used": 0, "cursors": [[origin + reader, 0] for origin in origins]}
