"""A step number → the learning rate: a linear warm-up and a cosine, begun anew in every stage."""

from __future__ import annotations

import math

from radio_distill.recipe import Recipe

WARMUP_START = 0.01


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate that optimiser step `step` (from 0) uses."""
    number, inside = recipe.stage_at(step)
    stage, optim = recipe.stages[number], recipe.optim
    peak = optim.lr if stage.lr is None else stage.lr
    warmup = min(optim.warmup if stage.warmup is None else stage.warmup, stage.steps)
    if inside < warmup:
        return peak * (WARMUP_START + (1 - WARMUP_START) * (inside + 1) / warmup)
    progress = (inside - warmup) / max(stage.steps - warmup, 1)
    return peak * (optim.final_lr + (1 - optim.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))
