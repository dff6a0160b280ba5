"""A model in training → the running average of its weights, as a model that can be called and exported."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """An exponential moving average of a model's weights, in fp32, whole on every rank.

    Make it before the engine takes the model, and call `update` where the weights are whole (`Objective.after_step`).
    Trained weights are fp32 throughout, so the average is taken from them and loses nothing: in bf16 a step of
    1 − 0.9996 of a difference would be rounded away.

    Args:
        decay: share of the average that each update keeps. The average begins at the model's own weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"a decay between 0 and 1 is needed, not {decay}")
        self.model, self.decay = model, decay
        self.module: nn.Module = copy.deepcopy(model).float().eval().requires_grad_(False)
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's present weights; buffers (running norms) are copied."""
        averages, weights = zip(*self._pairs())
        device = weights[0].device
        if averages[0].device != device:  # the engine has moved the model since
            self.module.to(device)
            averages, weights = zip(*self._pairs())
        torch._foreach_lerp_(list(averages), [weight.detach().float() for weight in weights], 1 - self.decay)
        for copied, buffer in zip(self.module.buffers(), self.model.buffers(), strict=True):
            copied.copy_(buffer)
        self.updates += 1

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.module.parameters(), self.model.parameters(), strict=True))

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint: every average and buffer by name, and how many updates made them."""
        state = {key: value.detach() for key, value in self.module.state_dict().items()}
        return {**state, "updates": torch.tensor(self.updates)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state()`."""
        weights = dict(state)
        self.updates = int(weights.pop("updates"))
        self.module.load_state_dict(weights)
