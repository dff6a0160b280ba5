"""One crop with a margin → the window of it that each network sees, and the places that two windows have in common.

For shift-equivariant losses (C-RADIOv4) student and teacher look at one crop under shifts of their own, by whole
patches; what they say is compared where both looked. A shift is drawn once a batch and network, which keeps windows
views of one tensor (the paper does not say whether it draws one an image).

Shapes: B images, C channels, h w a grid of cells, p pixels a cell. Shifts and offsets are (down, right).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from teachers.features import Size

REACH = 2  # deviations, rounded up, past which a shift is cut off: the margin around a window takes from what it sees


def largest_shift(deviation: float) -> int:
    """In patches; a normal of `deviation` is rounded and cut off there."""
    return math.ceil(REACH * deviation) if deviation else 0


def margin(deviation: float, grids: Iterable[Size]) -> float:
    """The share of its own side that every window needs around it: what the coarsest grid needs for its shifts."""
    return largest_shift(deviation) / min(min(grid) for grid in grids)


@dataclass(frozen=True)
class Window:
    """What one network sees of the crop: `size` pixels of the `base` pixels that the loader cut, at `top`, `left`."""

    base: Size
    size: Size
    top: int
    left: int
    shift: tuple[float, float] = (0.0, 0.0)  # as a share of the window's own height and width

    @classmethod
    def of(cls, size: Size, patch: int, margin: float, deviation: float = 0.0, rng: torch.Generator | None = None):
        """A window in the middle, or (with `rng`) moved by whole patches."""
        border = tuple(math.ceil(side * margin) for side in size)
        base = (size[0] + 2 * border[0], size[1] + 2 * border[1])
        moved = (0, 0)
        if rng is not None and deviation:
            most = largest_shift(deviation)
            moved = (torch.randn(2, generator=rng) * deviation).round().clamp(-most, most).int().tolist()
        top, left = border[0] + moved[0] * patch, border[1] + moved[1] * patch
        return cls(base, size, top, left, (moved[0] * patch / size[0], moved[1] * patch / size[1]))

    def cut(self, images: Tensor) -> Tensor:
        """B×3×base → B×3×size, a view."""
        height, width = self.size
        return images[..., self.top : self.top + height, self.left : self.left + width]

    def valid(self, extents: Tensor, grid: Size) -> Tensor:
        """The cells of `grid` that lie wholly in the picture: B×h×w bool.

        `extents`: B×2, the share of the base's height and width that is picture; padding lies below and to the right.
        """
        sides = []
        for axis, cells in enumerate(grid):
            start = (self.top, self.left)[axis]
            ends = start + (torch.arange(cells, device=extents.device) + 1) * (self.size[axis] / cells)
            sides.append(ends <= extents[:, axis, None] * self.base[axis] + 1e-3)
        return sides[0][:, :, None] & sides[1][:, None, :]


def offset(student: Window, teacher: Window, grid: Size) -> tuple[float, float]:
    """By how many cells of `grid` the teacher's window lies further down and right than the student's."""
    down, right = ((t - s) * g for t, s, g in zip(teacher.shift, student.shift, grid))
    return _whole(down), _whole(right)


def _whole(cells: float) -> float:
    return float(round(cells)) if abs(cells - round(cells)) < 1e-6 else cells


def common(
    predicted: Tensor, target: Tensor, moved: tuple[float, float]
) -> tuple[Tensor, Tensor, tuple[slice, slice]]:
    """What both say of the places that both saw, B×C×h'×w' each, and the target's rows and columns that are left.

    `moved`: the target's window against the prediction's, in cells of their one grid. Where that is no whole number the
    prediction is read between its cells, linearly; whole shifts are slices.
    """
    rows, columns = (_range(cells, by) for cells, by in zip(target.shape[-2:], moved))
    predicted = _read(_read(predicted, rows, moved[0], -2), columns, moved[1], -1)
    return predicted, target[..., rows, columns], (rows, columns)


def _range(cells: int, moved: float) -> slice:
    """The target's cells i for which i + moved lies between the prediction's first and last cell."""
    first = max(0, math.ceil(-moved))
    return slice(first, max(first, math.floor(min(cells - 1, cells - 1 - moved)) + 1))


def _read(maps: Tensor, cells: slice, moved: float, dim: int) -> Tensor:
    low = math.floor(moved)
    count = cells.stop - cells.start
    near = maps.narrow(dim, cells.start + low, count)
    if moved == low or not count:
        return near
    return torch.lerp(near, maps.narrow(dim, cells.start + low + 1, count), moved - low)
