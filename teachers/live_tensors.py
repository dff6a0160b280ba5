"""Operators that run → the bytes of the tensors that they made and that are still alive, now and at the most."""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Counts storages that operators inside it make, on any device or on one, also without memory (meta, fake).

    What a kernel sets aside for itself is not seen.
    """

    def __init__(self, device: torch.device | None = None):
        super().__init__()
        self.device = device
        self.held = self.peak = 0  # bytes
        self._alive: dict[int, int] = {}

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
        if key in self._alive or (self.device is not None and tensor.device != self.device):
            return
        self._alive[key] = storage.nbytes()
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        self.held -= self._alive.pop(key, 0)


@cache
def _makes(func: Any) -> bool:
    """Whether an operator makes tensors, rather than views of its inputs or the inputs themselves."""
    return not any(one.alias_info is not None for one in func._schema.returns)
