"""Window attention on a CPU: a tile of queries at a time with the keys that it sees, in a core's cache.

Shapes: B images, h w cells, n heads of width e, r radius of the window.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE, ROWS = 8, 4  # queries along a row of a tile; rows of a tile here: fewer see fewer keys in vain

Place = tuple[int, slice, slice]  # an image, its rows, its columns


def tile_by_tile(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, radius: int) -> Tensor:
    """See `window_attention`."""
    return _TileByTile.apply(q, k, v, bias, radius)


class _TileByTile(torch.autograd.Function):
    """The attention on a CPU: scores are computed again in the backward, so that only the maps are kept."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, radius: int) -> Tensor:
        out, rooms, bias = torch.empty_like(q), _Rooms(q, radius), _Cut(bias, radius, q)
        for queries, near in _tiles(q.shape, radius):
            if q.is_meta and bias.knows(queries, near):
                continue  # a plan asks for memory, which tiles of one shape share
            query, key, value = (rooms.take(*x) for x in (("q", q[queries]), ("k", k[near]), ("v", v[near])))
            weights = rooms.weights(query, key, bias(queries, near))
            out[queries] = _as_cells(rooms.product("o", weights, value), out[queries])
        ctx.save_for_backward(q, k, v, bias.whole, out)
        ctx.radius = radius
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out = ctx.saved_tensors
        rooms, bias = _Rooms(q, ctx.radius), _Cut(bias, ctx.radius, q)
        of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        scale = q.shape[-1] ** -0.5
        for queries, near in _tiles(q.shape, ctx.radius):
            query, key, value = (rooms.take(*x) for x in (("q", q[queries]), ("k", k[near]), ("v", v[near])))
            up, done = rooms.take("up", upstream[queries]), rooms.take("o", out[queries])
            weights = rooms.weights(query, key, bias(queries, near))
            mean = (up * done).sum(-1, keepdim=True)  # of a query's score gradients, before they are centred
            # From here on each product takes the room of something that is not needed any more.
            of_scores = rooms.product("s", up, value.mT).sub_(mean).mul_(weights)
            of_q[queries] = _as_cells(rooms.product("o", of_scores, key).mul_(scale), of_q[queries])
            of_k[near] += _as_cells(rooms.product("k", of_scores.mT, query).mul_(scale), of_k[near])
            of_v[near] += _as_cells(rooms.product("v", weights.mT, up), of_v[near])
        return of_q, of_k, of_v, None, None


def _tiles(shape: torch.Size, radius: int) -> Iterator[tuple[Place, Place]]:
    """Where each tile's queries are, and the keys that any of them sees."""
    b, h, w = shape[:3]
    for n in range(b):
        for y in range(0, h, ROWS):
            for x in range(0, w, TILE):
                bottom, right = min(y + ROWS, h), min(x + TILE, w)
                rows = slice(max(0, y - radius), min(h, bottom + radius))
                columns = slice(max(0, x - radius), min(w, right + radius))
                yield (n, slice(y, bottom), slice(x, right)), (n, rows, columns)


class _Cut:
    """`score_bias` → heads×queries×keys of a tile, without what lies beyond the borders."""

    def __init__(self, bias: Tensor, radius: int, like: Tensor):
        self.whole, self.radius, self.dtype = bias, radius, _precise(like)
        self.known: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, queries: Place, near: Place) -> Tensor:
        key = self._key(queries, near)
        if key not in self.known:
            top, left, rows, columns, high, wide = key
            reach = TILE + 2 * self.radius
            whole = self.whole.view(-1, TILE, TILE, reach, reach)
            part = whole[:, :rows, :columns, top : top + high, left : left + wide]
            self.known[key] = part.to(self.dtype).flatten(3).flatten(1, 2).contiguous()
        return self.known[key]

    def knows(self, queries: Place, near: Place) -> bool:
        return self._key(queries, near) in self.known

    def _key(self, queries: Place, near: Place) -> tuple[int, ...]:
        (_, rows, columns), (_, high, wide) = queries, near
        top, left = high.start - rows.start + self.radius, wide.start - columns.start + self.radius
        return top, left, *(s.stop - s.start for s in (rows, columns, high, wide))


def _precise(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


class _Rooms:
    """Memory for one tile, by name, used for tile after tile: new memory costs a CPU as much as a product."""

    def __init__(self, like: Tensor, radius: int):
        self.scale = like.shape[-1] ** -0.5
        heads, e = like.shape[-2:]
        queries, keys = ROWS * TILE, (ROWS + 2 * radius) * (TILE + 2 * radius)
        sizes = {"q": queries * e, "up": queries * e, "o": queries * e, "k": keys * e, "v": keys * e}
        sizes |= {"s": queries * keys, "w": queries * keys}
        self.rooms = {name: like.new_empty(heads * n, dtype=_precise(like)) for name, n in sizes.items()}

    def room(self, name: str, *shape: int) -> Tensor:
        n = shape[0] * shape[1] * shape[2]
        return self.rooms[name][:n].view(shape)

    def take(self, name: str, cells: Tensor) -> Tensor:
        """A copy of cells h×w×heads×e as heads×(h·w)×e."""
        h, w, heads, e = cells.shape
        room = self.room(name, heads, h * w, e)
        room.view(heads, h, w, e).copy_(cells.permute(2, 0, 1, 3))
        return room

    def product(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return torch.bmm(a, b, out=self.room(name, len(a), a.shape[1], b.shape[2]))

    def weights(self, query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
        """softmax(scale · query · key + bias)."""
        scores = torch.baddbmm(bias, query, key.mT, alpha=self.scale, out=self.room("s", *bias.shape))
        return torch.softmax(scores, -1, out=self.room("w", *bias.shape))


def _as_cells(x: Tensor, like: Tensor) -> Tensor:
    """heads×(h·w)×e → h×w×heads×e."""
    return x.unflatten(1, like.shape[:2]).permute(1, 2, 0, 3)
