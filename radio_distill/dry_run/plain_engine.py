"""A module and an optimizer → an engine with the few verbs that the loop uses, without DeepSpeed: one process, stage 0.

For rehearsals, whose tensors have no values: DeepSpeed copies, pins and checks memory that is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn


class PlainEngine:
    """Forward under autocast, backward, clipping and the optimizer's step, as DeepSpeed's stage 0 does them."""

    enable_backward_allreduce = False

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip: float,
        precision: Callable[[], AbstractContextManager],
    ):
        self.module, self.optimizer = module, optimizer
        self._clip, self._precision, self._last = clip, precision, True

    def __call__(self, *args: Any, **options: Any) -> Any:
        with self._precision():
            return self.module(*args, **options)

    def train(self, mode: bool = True) -> None:
        self.module.train(mode)

    def zero_optimization_stage(self) -> int:
        return 0

    def get_global_grad_norm(self) -> None:
        """As DeepSpeed's at stage 0 in fp32: the caller has computed it already."""

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self._last = is_boundary

    def backward(self, loss: Tensor, scale_wrt_gas: bool = False) -> None:
        loss.backward()

    def step(self) -> None:
        if not self._last:
            return
        if self._clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self._clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
