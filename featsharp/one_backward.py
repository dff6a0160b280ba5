"""A loss of many terms over one expensive tensor → one backward pass through what made that tensor.

Every view of an image is compared with the same sharp map, so a plain backward would walk the sharpener once a view.
Here the terms' gradients meet at a detached copy of the map while they are computed; the loss that is returned knows
them, and an engine's ordinary `backward` carries them on. The gradients are the same; hooks (DDP, ZeRO) fire as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def one_backward(
    inputs: Sequence[Tensor], parameters: Iterable[Tensor], terms: Iterable[Callable[..., Tensor]]
) -> Tensor:
    """The sum of `term(*inputs)` over terms, a scalar whose backward hands all gradients on at once.

    `parameters`: what the terms use besides `inputs`. Each term's graph is freed before the next one is built.
    """
    if not torch.is_grad_enabled():
        return sum(term(*inputs) for term in terms)
    leaves = [x.detach().requires_grad_() for x in inputs]
    parameters = [p for p in parameters if p.requires_grad]
    wanted = leaves + parameters
    total: Tensor | None = None
    sums: list[Tensor | None] = [None] * len(wanted)
    for term in terms:
        value = term(*leaves)
        gradients = torch.autograd.grad(value, wanted, allow_unused=True)
        sums = [g if s is None else s if g is None else s + g for s, g in zip(sums, gradients)]
        total = value.detach() if total is None else total + value.detach()
    return _KnownGradients.apply(total, sums, *inputs, *parameters)


class _KnownGradients(torch.autograd.Function):
    """A number whose derivatives by `tensors` are known already."""

    @staticmethod
    def forward(ctx, value: Tensor, gradients: list[Tensor | None], *tensors: Tensor) -> Tensor:
        ctx.known = [g is not None for g in gradients]
        ctx.save_for_backward(*(g for g in gradients if g is not None))
        return value.clone()

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        return None, None, *(next(saved) * upstream if known else None for known in ctx.known)
