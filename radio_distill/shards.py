"""Turns a stream's section of the recipe into endless batches of views, resumable to the bit: `ShardStream`.

    stream = ShardStream(recipe.streams["low"], name="low", seed=0, sizes=lambda index: [(64, 64), (56, 56)])
    batch = next(stream)                             # batch.position goes on exactly after it
    ShardStream(..., position=batch.position)

`visits` says who reads which sample when, `tars` reads it, `views` decodes and crops it, `batches` gathers it,
`loading` does so in processes of their own. `read_all` reads held-out shards, once and in order. As a command this
module packs and inspects shards: `python -m radio_distill.shards --help`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from radio_distill import tars, visits
from radio_distill.batches import BatchMaker, empty, fill, note
from radio_distill.loading import Loader
from radio_distill.views import BadPicture, Batch, Crop, centre_crop, check_sizes
from radio_distill.visits import Source
from teachers.errors import UserError
from teachers.features import Size

if TYPE_CHECKING:
    from radio_distill.recipe import StreamConfig


class ShardStream:
    """Endless batches of one stream, for one rank.

    Args:
        config: the stream's section of the recipe.
        name: of the stream; every random draw depends on it, on `seed`, and on where the sample stands.
        sizes: which image sizes batch number `index` must carry; the crop has the aspect of the first. Give a function
            of the index alone, or a resumed run differs.
        position: of an earlier stream (`Batch.position`), or the list of all ranks' positions. With the same ranks,
            workers, shuffle and shards the stream goes on bit for bit; else at shards that no reader has begun (for
            that, every rank must be given the same position or list), and `notice` says why.

    Raises `UserError` for missing shards at once, and while reading when too little can be read.
    """

    def __init__(
        self,
        config: StreamConfig,
        name: str,
        seed: int,
        sizes: Callable[[int], Sequence[Size]],
        rank: int = 0,
        world: int = 1,
        position: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
    ):
        sources = visits.sources_of(config, f"streams.{name}")
        workers = max(1, config.workers)
        self._layout = {
            "stream": name,
            "rank": rank,
            "world": world,
            "workers": config.workers,
            "shuffle": config.shuffle,
            "sources": [
                [source.name, source.fingerprint, source.weight, visits.Deal(source, name, seed, world * workers).units]
                for source in sources
            ],
        }
        self.notice: str | None = None  # how the position was taken up, where that was not exactly
        numbers = [rank * workers + worker for worker in range(workers)]
        self.index, self._readers = self._begin(sources, numbers, position)
        makers = [
            BatchMaker(config, name, seed, sources, number, world * workers, start)
            for number, start in zip(numbers, self._readers)
        ]
        self._loader = Loader(name, makers, config.workers, lambda index: self._sizes(sizes, index), self.index)

    def __iter__(self) -> ShardStream:
        return self

    def __next__(self) -> Batch:
        batch, after = next(self._loader)
        self._readers[batch.index % len(self._readers)] = after
        self.index = batch.index + 1
        batch.position = self.position
        return batch

    def __enter__(self) -> ShardStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the loader's processes; the stream cannot be read further."""
        self._loader.close()

    @property
    def position(self) -> dict[str, Any]:
        """After the last batch handed out: plain numbers and strings, for JSON."""
        return {**self._layout, "index": self.index, "readers": list(self._readers)}

    def _sizes(self, sizes: Callable[[int], Sequence[Size]], index: int) -> list[Size]:
        wanted = [(int(height), int(width)) for height, width in sizes(index)]
        check_sizes(wanted, f"stream '{self._layout['stream']}'")
        return wanted

    def _begin(self, sources: list[Source], numbers: list[int], position: Any) -> tuple[int, list[dict]]:
        """The next batch's number, and where each of this rank's readers starts."""
        if not position:
            return 0, [_untried(sources, visits.fresh(sources, number)) for number in numbers]
        ranks = [position] if isinstance(position, dict) else list(position)
        for saved in ranks:
            if all(saved.get(key) == value for key, value in self._layout.items()):
                return saved["index"], list(saved["readers"])
        changed = sorted({key for key, value in self._layout.items() for saved in ranks if saved.get(key) != value})
        self.notice = (
            f"stream '{self._layout['stream']}': {', '.join(changed)} changed since the position was saved; "
            "going on with shards that no reader had begun, in another order than the old run's"
        )
        readers = [reader for saved in ranks for reader in saved["readers"]]
        block = 1 + max(reader["block"] for reader in readers)
        origins = [self._origin(*facts, ranks) for facts in self._layout["sources"]]
        starts = [_untried(sources, visits.fresh(sources, number, origins, block)) for number in numbers]
        return max(saved["index"] for saved in ranks), starts

    def _origin(self, name: str, fingerprint: str, _: float, units: int, ranks: Sequence[dict]) -> int:
        """The first visit of a source past every visit that any reader had begun."""
        for place, (old_name, old_fingerprint, _, old_units) in enumerate(ranks[0]["sources"]):
            if old_name == name:
                reached = 1 + max(reader["reach"][place] for saved in ranks for reader in saved["readers"])
                if (old_fingerprint, old_units) == (fingerprint, units):
                    return reached
                return -(-reached // old_units) * units  # its visits are others now: the next whole epoch
        return 0


def _untried(sources: Sequence[Source], start: dict) -> dict:
    return {**start, "seen": 0, "bad": 0, "barren": [0] * len(sources)}


def read_all(
    shards: str | Sequence[str],
    limit: int | None,
    sizes: Sequence[Size],
    *,
    batch: int = 32,
    name: str = "heldout",
    rank: int = 0,
    world: int = 1,
    letterbox: bool = False,
) -> Iterator[Batch]:
    """Batches of the first `limit` pictures, once, in order; the last batch may be smaller.

    Of each the centre crop, or with `letterbox` the whole, fitted into the size. Rank r of R gets pictures r, r + R,
    ... Bad samples are passed over (`Batch.skipped`); `UserError` if none is good.
    """
    sizes = [(int(height), int(width)) for height, width in sizes]
    check_sizes(sizes, name)
    items = (item for shard in tars.resolve(shards, f"{name}.shards") for item in tars.read(shard))
    made, full, seen = empty(batch, sizes, name, 0), None, 0

    def choose(size: Size) -> Crop:
        return Crop(0, 0, *size) if letterbox else centre_crop(size, sizes[0][1] / sizes[0][0])

    for item in items:
        if seen == limit:
            break
        mine, seen = seen % world == rank, seen + (item.picture is not None)
        if not mine:
            continue
        if len(made.keys) == batch:
            full, made = made, empty(batch, sizes, name, made.index + 1)
        try:
            fill(item, made, choose, letterbox=letterbox)
        except BadPicture as error:
            note(full or made, item, error)  # so faults behind the last picture of all have a batch too
            continue
        if full:
            yield full
            full = None
    if full:
        yield full
    elif made.keys:
        made.images = {size: images[: len(made.keys)] for size, images in made.images.items()}
        made.extents = made.extents[: len(made.keys)]
        yield made
    else:
        faults = [f"{shard}: {reason}" for shard, reasons in made.skipped.items() for reason in reasons]
        raise UserError(f"{name}.shards: no picture could be read; " + "; ".join(faults[:3]), todo=tars.HOW_TO_MAKE)


if __name__ == "__main__":
    from radio_distill.shard_commands import main

    raise SystemExit(main())
