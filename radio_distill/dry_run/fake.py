"""Runs code on tensors without memory, and counts what the same code would compute, hold and read back.

torch's fake tensors have a shape, a dtype and a device but no values, so a network of any size runs in seconds. What a
step asks of values is answered so that it goes on: a number read back is 0.5, a whole number 0 and 1 in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from teachers.live_tensors import LiveTensors

aten = torch.ops.aten


class Meter(LiveTensors):
    """Counts the operators that run inside it; `fake_tensors` gives one.

    `flops` counts matrix products, convolutions and attention, a multiplication and an addition as two (torch's own
    formulas); `held` and `peak` are bytes, see `LiveTensors`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0
        self.reads = 0  # of values, from the host: each would make a GPU wait
        self._whole = cycle((0, 1))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is _DEVICE:
            return args[0].fake_device  # asked more often than all else together
        if func in _READS:
            self.reads += 1
            return self._value(func, args)
        if func is aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
            self.reads += 1  # how many are true; here all are
            inner = args[0].shape[args[1][0].ndim :]
            func, args = aten.clone.default, (args[0].reshape(-1, *inner),)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        formula = _FLOPS.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out

    def measure(self, call: Callable[[], object]) -> Usage:
        """What a call computes, and the most that it holds beyond what was there before, its result included."""
        flops, held = self.flops, self.held
        self.peak = held
        result = call()  # noqa: F841 (alive until it is counted)
        return Usage(self.flops - flops, self.peak - held)

    def _value(self, func: Any, args: tuple) -> bool | int | float:
        if func is aten.equal.default:
            return True
        kind = args[0].dtype
        return True if kind == torch.bool else 0.5 if kind.is_floating_point else next(self._whole)


class Usage(NamedTuple):
    """What a piece of work takes."""

    flops: float
    peak: int  # bytes


def _attention_on_a_cpu(query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_back_on_a_cpu(gradient: Any, query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any):
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


_DEVICE = torch.ops.prim.device.default
_READS = (aten._local_scalar_dense.default, aten.equal.default)
_FLOPS = {
    **flop_registry,  # which lacks the CPU's attention
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_on_a_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back_on_a_cpu,
}


@contextmanager
def fake_tensors() -> Iterator[Meter]:
    """Inside, new tensors are fake; those from outside may be mixed in."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _apply))
        # torch draws until no number lies outside, which is never known here; for meta tensors it knows better.
        stack.enter_context(mock.patch.object(nn.init, "_no_grad_trunc_normal_", _itself))
        # A deep copy of a buffer would copy memory that is not there, and what it hits instead.
        stack.enter_context(mock.patch.object(FakeTensor, "__deepcopy__", _copied, create=True))
        stack.enter_context(FakeTensorMode(allow_fallback_kernels=False, allow_non_fake_inputs=True))
        yield stack.enter_context(Meter())


def _copied(self: Tensor, memo: dict[int, Any]) -> Tensor:
    return memo.setdefault(id(self), self.detach().clone())


def _itself(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    return tensor


def materialize(module: nn.Module, device: torch.device | str) -> nn.Module:
    """A module of the meta device → the same on `device`, fake inside `fake_tensors`."""
    return module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))


@torch.no_grad()
def _apply(self: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """In place of a module's own, behind `.to` and its like.

    torch exchanges fake parameters inside their objects, and refuses where anything knows those by a weak reference, as
    its own fake mode does.
    """
    for module in self.modules() if recurse else [self]:
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or (changed := change(tensor)) is tensor:
                    continue
                is_parameter = isinstance(tensor, nn.Parameter)
                tensors[name] = nn.Parameter(changed, tensor.requires_grad) if is_parameter else changed
    return self


def bytes_of(*modules: nn.Module | None) -> int:
    """Of all parameters and buffers, each once."""
    tensors = {id(t): t for module in modules if module is not None for t in [*module.parameters(), *module.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
