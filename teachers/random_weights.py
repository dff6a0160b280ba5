"""Turns a library's random initialization into one cheap draw per tensor: same means and deviations, seeded, any rank.

timm and open_clip draw most weights twice (a layer's own initialization, then the network's) and by slow distributions
(truncated normals through the inverse error function). Inside `fast_initialization` a random fill of a whole tensor is
only noted down; the last note of each tensor is carried out at the end, as uniform numbers of the mean and standard
deviation that the library asked for. Everything else (constants, tables, masks, values computed from random ones) runs
as written: whoever reads a tensor that is only noted down gets it filled first.

A student that is about to be trained is not initialized so: see `teachers.radio`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from teachers.features import has_values
from teachers.seeding import Part, seed_of, seeded

aten = torch.ops.aten
LEVELS = 1 << 16
BLOCK = 1 << 15  # numbers


@contextmanager
def fast_initialization(*parts: Part) -> Iterator[Notes]:
    """What is built inside has random weights as a function of `parts`; torch's own generator is left as it was."""
    with seeded(*parts):
        notes = Notes(parts)
        with notes:
            yield notes
        notes.fill_all()


@dataclass
class _Note:
    """A fill that has not been carried out, of a contiguous fp32 tensor (which it keeps alive)."""

    tensor: Tensor
    mean: float
    std: float
    bounds: tuple[float, float] | None  # of a uniform fill that nothing was done to


class Notes(TorchDispatchMode):
    """Sees every operation below the libraries: notes random fills down, carries them out where they are read."""

    def __init__(self, parts: tuple[Part, ...]):
        super().__init__()
        self.parts = parts
        self.filled = 0
        self.notes: dict[int, dict[range, _Note]] = {}  # by address of a storage, then by elements of it

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = args[0] if args and isinstance(args[0], Tensor) else None
        if target is not None and _is_plain(target) and self._noted(func, target, args[1:], kwargs):
            return target
        if target is not None and not has_values(target) and func in _ON_VALUES_ALONE:
            return target  # nothing to do, over which torch would take its time
        if self.notes and not func.is_view:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and _has_memory(leaf):
                    self._fill(_address(leaf))
        return func(*args, **kwargs)

    def _noted(self, func, target: Tensor, args: tuple, kwargs: dict) -> bool:
        """Whether nothing is to be computed now: a random fill, or a step that turns one into another."""
        notes, place = self.notes.setdefault(_address(target), {}), _place(target)
        if func in _FILLS and kwargs.get("generator") is None:
            after = _FILLS[func](target, *args)
        elif func in _UPDATES and place in notes:
            after = _UPDATES[func](notes[place], *args, **kwargs)
        else:
            after = None
        if after is not None or func in _CONSTANTS:  # whatever stood here is overwritten
            for other in list(notes):
                notes.update(_around(other, place, notes.pop(other)))
        if after is not None:
            notes[place] = after
        return after is not None

    def keep(self, module: nn.Module | None) -> None:
        """Forget what is noted down of other modules than this one: their memory stays untouched, and undefined."""
        kept = [] if module is None else [*module.parameters(), *module.buffers()]
        addresses = {_address(tensor) for tensor in kept if _has_memory(tensor)}
        self.notes = {address: notes for address, notes in self.notes.items() if address in addresses}

    def fill_all(self) -> None:
        """Carry out what is still noted down, in the order of the first notes."""
        for address in list(self.notes):
            self._fill(address)

    def _fill(self, address: int) -> None:
        for note in self.notes.pop(address, {}).values():
            fill(note.tensor, note.mean, note.std, *self.parts, self.filled)
            self.filled += 1


def _around(old: range, new: range, note: _Note) -> dict[range, _Note]:
    """What is left of a note of the elements `old` once `new` are overwritten: what stands before and behind."""
    sides = (range(old.start, min(old.stop, new.start)), range(max(old.start, new.stop), old.stop))
    values = note.tensor.detach().reshape(-1)
    return {
        side: replace(note, tensor=values[side.start - old.start : side.stop - old.start]) for side in sides if side
    }


def fill(tensor: Tensor, mean: float, std: float, *parts: Part) -> None:
    """Fill a contiguous fp32 tensor in place with uniform numbers of this mean and standard deviation, from a seed.

    Each has one of 2**16 values, so that a 64-bit draw makes four: a third of the time of torch's or numpy's own
    uniform numbers. Blocks stay in the processor's cache, and no memory is needed beside the tensor's.
    """
    values, draws = tensor.detach().reshape(-1).numpy(), np.random.SFC64(seed_of("weights", *parts))
    step = np.float32(std * math.sqrt(12) / LEVELS)
    middle = np.float32(mean) + step / 2  # of 16-bit integers, which reach from -LEVELS / 2 to LEVELS / 2 - 1
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        integers = draws.random_raw(-(-len(block) // 4)).view(np.int16)[: len(block)]
        np.multiply(integers, step, out=block, casting="unsafe")
        block += middle


# Operations -------------------------------------------------------------------------------------------------------


def _uniform(tensor: Tensor, low: float = 0.0, high: float = 1.0) -> _Note:
    return _Note(tensor, (low + high) / 2, (high - low) / math.sqrt(12), (low, high))


def _normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> _Note:
    return _Note(tensor, mean, std, None)


def _inverse_error_function(note: _Note) -> _Note | None:
    """The second step of a truncated normal: uniform numbers in (-1, 1) → a normal's, cut at both ends, over √2."""
    if note.bounds is None or not -1 <= note.bounds[0] < note.bounds[1] <= 1:
        return None
    ends = torch.special.erfinv(torch.tensor(note.bounds, dtype=torch.float64)).mul(math.sqrt(2)).tolist()
    heights = [math.exp(-end * end / 2) / math.sqrt(2 * math.pi) for end in ends]
    share = (note.bounds[1] - note.bounds[0]) / 2
    mean = (heights[0] - heights[1]) / share
    tails = sum(sign * end * height for sign, end, height in zip((1, -1), ends, heights) if math.isfinite(end))
    variance = 1 + tails / share - mean**2
    return replace(note, mean=mean / math.sqrt(2), std=math.sqrt(variance / 2), bounds=None)


def _times(note: _Note, factor: object) -> _Note | None:
    if not isinstance(factor, (int, float)):
        return None
    return replace(note, mean=note.mean * factor, std=note.std * abs(factor), bounds=None)


def _plus(note: _Note, term: object, alpha: float = 1) -> _Note | None:
    if not isinstance(term, (int, float)):
        return None
    return replace(note, mean=note.mean + alpha * term, bounds=None)


def _between(note: _Note, min: float | None = None, max: float | None = None) -> _Note | None:
    """A truncated normal's last step only rounds: all but its tails lie between the bounds already."""
    low, high = -math.inf if min is None else min, math.inf if max is None else max
    inside = low <= note.mean - 1.5 * note.std and note.mean + 1.5 * note.std <= high
    return replace(note, bounds=None) if inside else None


_FILLS = {aten.uniform_.default: _uniform, aten.normal_.default: _normal}
_UPDATES = {
    aten.erfinv_.default: _inverse_error_function,
    aten.mul_.Tensor: _times,
    aten.mul_.Scalar: _times,
    aten.add_.Tensor: _plus,
    aten.add_.Scalar: _plus,
    aten.clamp_.default: _between,
}
_CONSTANTS = {aten.zero_.default, aten.fill_.Scalar, aten.fill_.Tensor, aten.copy_.default}
_ON_VALUES_ALONE = {*_FILLS, aten.erfinv_.default, aten.clamp_.default, aten.zero_.default, aten.fill_.Scalar}


def _has_memory(tensor: Tensor) -> bool:
    """On the CPU and real: neither meta nor a FakeTensor."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.layout is torch.strided


def _is_plain(tensor: Tensor) -> bool:
    """Whether the tensor can be noted down: fp32, and without gaps."""
    return _has_memory(tensor) and tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.numel() > 0


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _place(tensor: Tensor) -> range:
    """The elements of its storage."""
    return range(tensor.storage_offset(), tensor.storage_offset() + tensor.numel())
