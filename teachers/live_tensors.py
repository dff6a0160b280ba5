"""Operators that run → the bytes of the tensors that they made and that are still alive, now and at the most."""

from __future__ import annotations

from collections import deque
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TOLERATED = 1000  # the peak may be too low by this part of it
RECENT = 64  # storages: what an operator frees was mostly made by one of the last


class LiveTensors(TorchDispatchMode):
    """Counts storages that operators inside it make, on any device or on one, also without memory (meta, fake).

    What a kernel sets aside for itself is not seen. Who is alive is asked when it matters, which is where a new tensor
    might make the most: Python's own weak references to storages do not outlive their wrappers safely (torch 2.14).
    """

    def __init__(self, device: torch.device | None = None):
        super().__init__()
        self.device = device
        self.peak = 0  # bytes
        self._bytes = 0  # of all in `_known`, dead ones too
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}
        self._recent: deque[int] = deque(maxlen=RECENT)

    @property
    def held(self) -> int:
        """Bytes that are alive now."""
        self._forget_dead(list(self._known))
        return self._bytes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in here, and guarding against it costs more than the counting

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if _makes(func):
            for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self._hold(leaf)
        return out

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or (self.device is not None and tensor.device != self.device):
            return
        self._known[key] = StorageWeakRef(storage), storage.nbytes()  # while it is kept, no other storage has this key
        self._recent.append(key)
        self._bytes += storage.nbytes()
        if self._bytes > self.peak:
            self._forget_dead(list(self._recent))
        if self._bytes > self.peak + self.peak // TOLERATED:  # asking all after every tensor would take minutes
            self.peak = max(self.peak, self.held)

    def _forget_dead(self, keys: list[int]) -> None:
        for key in keys:
            if key in self._known and self._known[key][0].expired():
                self._bytes -= self._known.pop(key)[1]


@cache
def _makes(func: Any) -> bool:
    """Whether an operator makes tensors, rather than views of its inputs or the inputs themselves."""
    return not any(one.alias_info is not None for one in func._schema.returns)
