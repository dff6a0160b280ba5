"""A memory budget → how much is worked on at once: images a teacher call, channels of JBU, rows of the fusion block.

The budget is for what a call makes while it runs, beyond weights, inputs and its result. It is found by running the
call on the meta device, where tensors have shapes but no memory, so it holds for any teacher and follows the code.
Only inference is cut up: while training, autograd keeps what every piece made.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from featsharp.config import SharpenerConfig
from teachers.features import Encoder, Size
from teachers.live_tensors import LiveTensors

BLOCK = 16  # channels

_SEEN: WeakKeyDictionary[Encoder, dict[Size, tuple[int, int] | None]] = WeakKeyDictionary()


@torch.no_grad()
def peak_bytes(call: Callable[..., object], *inputs: Tensor) -> int:
    """The most bytes that `call(*inputs)` holds at a time on the inputs' device: without the inputs, with the result.

    On the meta device an upper bound: fused attention kernels, which keep no scores, do not run there.
    """
    with LiveTensors(inputs[0].device) as live:
        call(*inputs)
    return live.peak


def on_meta(module: nn.Module) -> Callable[..., object]:
    """`module`, as it is called with tensors on the meta device."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    return lambda *inputs: torch.func.functional_call(module, shapes, inputs)


def fitting(budget: int, one: int, two: int, step: int, most: int) -> int:
    """The largest multiple of `step` that the budget allows, at least `step`, or `most` where that fits.

    `one` and `two` are the bytes for `step` and for twice as many.
    """
    steps = 1 + max(0, budget - one) // max(1, two - one)
    return min(most, steps * step)


def by_channels(
    upsample: Callable[[Tensor, Tensor], Tensor], source: Tensor, kernel: Tensor, budget: int | None
) -> Tensor:
    """`upsample(source, kernel)`, which treats all channels of `source` B×C×h×w alike; in inference in blocks of them
    that keep within `budget` bytes."""
    b, c, h, w = source.shape
    if budget is None or torch.is_grad_enabled() or source.is_meta:
        return upsample(source, kernel)
    shape = kernel.to("meta")
    channels = c
    # Halved until it fits: `upsample` works in pieces of its own, so its bytes do not grow evenly with the channels.
    while channels > BLOCK and peak_bytes(upsample, source.new_empty(b, channels, h, w, device="meta"), shape) > budget:
        channels = max(BLOCK, -(-channels // (2 * BLOCK)) * BLOCK)
    if channels == c:
        return upsample(source, kernel)
    out = source.new_empty(b, c, *kernel.shape[-2:])
    for first in range(0, c, channels):
        out[:, first : first + channels] = upsample(source[:, first : first + channels], kernel)
    return out


def limit(module: nn.Module, budget: int | None) -> None:
    """Tell every part of `module` that can work in pieces how many bytes it may use."""
    for part in module.modules():
        if hasattr(part, "memory_budget"):
            part.memory_budget = budget


def images_at_once(encoder: Encoder, size: Size, config: SharpenerConfig) -> int | None:
    """Images of `size` a call of `encoder` may take, by `max_tiles_per_call` and `memory_budget`; None: any number.

    An encoder that cannot run on the meta device takes one image at a time under a budget.
    """
    most, budget = config.max_tiles_per_call, config.memory_budget
    if budget is None:
        return most
    cached = _SEEN.setdefault(encoder, {})
    if size not in cached:
        run = on_meta(encoder)
        try:
            cached[size] = tuple(peak_bytes(run, torch.empty(n, 3, *size, device="meta")) for n in (1, 2))
        except (RuntimeError, NotImplementedError):
            cached[size] = None
    if cached[size] is None:
        return 1
    images = fitting(budget, *cached[size], 1, budget)
    return images if most is None else min(most, images)
