"""A recipe's `optim` section and a model's parameters → the optimiser that steps them, group by group.

A group carries, besides its parameters, `lr_scale` (what the schedule is multiplied by for it), `part` ("trunk",
"heads" or "all") and `frozen`: a frozen group is passed over, which no gradient of zero would do, because weights
would decay and momentum go on. ZeRO steps one group at a time through the same `step`, so that holds at every stage.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from radio_distill.recipe import OptimConfig

# Tokens and positions are no matrices: decaying them pulls what is learnt about places towards nothing.
UNDECAYED = ("pos_embed", "tokens")
HEADS = ("heads", "balance")  # what a frozen trunk leaves learning


def param_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """The parameters that want gradients, by part and decay: positions, tokens, norms, biases, layer scales do not
    decay."""
    found: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            words = name.split(".")
            decays = parameter.ndim > 1 and words[-1] not in UNDECAYED
            found.setdefault(("heads" if words[0] in HEADS else "trunk", decays), []).append(parameter)
    return [
        {"params": params, "lr": lr, "lr_scale": 1.0, "part": part, "weight_decay": weight_decay if decays else 0.0}
        for (part, decays), params in found.items()
    ]


def build_optimizer(config: OptimConfig, groups: list[dict], device: torch.device) -> torch.optim.Optimizer:
    """The optimiser that the recipe names; weight decay is apart from the gradient, in LAMB a part of the update."""
    groups = [{"part": "all", "frozen": False, **group} for group in groups]
    shared = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.name == "nadam":
        return NAdam(groups, **shared, decoupled_weight_decay=True)
    if config.name == "lamb":
        # Clipping is the engine's: `max_grad_norm` would clip a second time.
        return _lamb()(groups, **shared, max_grad_norm=None)
    return AdamW(groups, **shared, fused=device.type in ("cpu", "cuda"))


def freeze(groups: list[dict], part: str | None) -> None:
    """Freeze the groups of one part of the model and free all others; None frees all."""
    for group in groups:
        group["frozen"] = part is not None and group["part"] == part


class SkipsFrozen:
    """Mixed into an optimiser: `step` passes over groups whose `frozen` is set, weights and moments untouched."""

    param_groups: list[dict]

    def step(self, closure: Any = None) -> Any:
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["frozen"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups


class AdamW(SkipsFrozen, torch.optim.AdamW):
    """Loshchilov and Hutter 2019, arXiv 1711.05101."""


class NAdam(SkipsFrozen, torch.optim.NAdam):
    """Dozat 2016; FeatSharp's."""


def _lamb() -> type[torch.optim.Optimizer]:
    """You et al. 2020, arXiv 1904.00962: Adam's step of a tensor, scaled to that tensor's own norm; RADIO's.

    Tensors that do not decay keep Adam's step, as in the implementations that RADIO's papers could use.
    """
    from timm.optim import Lamb  # timm takes seconds to import

    class TensorwiseLamb(SkipsFrozen, Lamb):
        pass

    return TensorwiseLamb
