"""Summaries of labelled pictures → the accuracy of a linear classifier: multinomial logistic regression, regularised.

Shapes: N training pictures, D width, K classes that occur in training.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from eval.resampling import hits, metric, percentage
from eval.tasks.task import Context, Result, TaskSettings, alone, summaries_of
from teachers.errors import UserError
from teachers.seeding import numpy_rng

VERSION = 1
GROUP = "Classification"
COUNTS = True
SEEDED = False
FIT = "crop"
SPLITS = ("train", "val")
PROTOCOL = (
    "Backbone summaries, each channel to mean 0 and deviation 1 over the training pictures; multinomial logistic "
    "regression that minimises C · Σ cross-entropy + ½ ‖W‖² (the intercept is free). C: the best of a grid on a "
    "stratified fifth of the training pictures (ties: the smallest), then everything is fitted again on all of them. "
    "Solver: L-BFGS; the objective is convex, so a seed decides nothing. Pictures: largest centred square, resized. "
    "Metric: top-1 accuracy. Chance: always the most frequent training class."
)
FOLDS = 5
MOST_STEPS, TOLERANCE = 500, 1e-5  # of L-BFGS; of the gradient of the mean over pictures
BLOCK = 1 << 26  # logits at once

Fit = tuple[Tensor, Tensor]  # weights K×D, intercepts K
Solver = Callable[[Tensor, Tensor, float], Fit]  # standardised features N×D, labels N in 0 … K − 1, C


class Settings(TaskSettings):
    """Linear probe."""

    task: Literal["linear"]
    grid: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = Field(
        [1e-4, 1e-3, 1e-2, 1e-1, 1.0], description="C, the inverse strength of the regularisation; the best is chosen"
    )
    steps: Annotated[int, Field(ge=1)] = Field(MOST_STEPS, description="of L-BFGS, at most, a classifier")
    small: Annotated[int, Field(ge=0)] = Field(
        200_000_000, description="pictures × width × classes up to which scikit-learn solves it; beyond, torch does"
    )


partners = alone
parts = summaries_of(*SPLITS)


def run(ctx: Context) -> Result:
    train, val, settings = ctx.split("train"), ctx.split("val"), ctx.settings
    known, labels = torch.unique(train.labels(), return_inverse=True)
    truth = val.labels()
    if len(known) < 2:
        raise UserError(f"all pictures of {train} are of one class", expected="at least two to tell apart")
    features, questions = (ctx.features(part, "backbone.summary").all().to(ctx.device) for part in ("train", "val"))
    small = features.numel() * len(known) <= settings.small
    solve = partial(with_scikit if small else with_torch, steps=settings.steps)
    strength = choose(features, labels, settings.grid, solve)
    mean, deviation = moments(features)
    weights, intercepts = solve((features - mean) / deviation, labels, strength)
    answers = known[(((questions - mean) / deviation).to(weights) @ weights.T + intercepts).argmax(dim=1).cpu()]
    chance = 100.0 * (truth == known[labels.bincount().argmax()]).double().mean().item()
    right = hits((answers == truth).numpy())
    top1 = metric(right, percentage, val.identity, direction="higher", unit="%", chance=chance)
    unseen = sorted(set(truth.tolist()) - set(known.tolist()))  # a small training set: they can only be missed
    facts = {"C": strength, "solver": "scikit-learn" if small else "torch", "train": train.count}
    return Result({"linear top-1": top1}, facts | {"unseen": [train.class_names[label] for label in unseen]})


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, D; a channel that never changes has deviation 1."""
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
    return mean, torch.where(deviation <= 1e-6 * mean.abs(), 1.0, deviation)  # what is left of a constant is rounding


def choose(features: Tensor, labels: Tensor, grid: list[float], solve: Solver) -> float:
    """The C whose classifier is right most often on the pictures held out; the smallest of those that are equal."""
    held = held_out(labels)
    if len(grid) == 1 or not held.any():
        return min(grid)
    mean, deviation = moments(features[~held])
    features = (features - mean) / deviation
    best, most = None, -1
    for strength in sorted(grid):
        weights, intercepts = solve(features[~held], labels[~held], strength)
        found = (features[held].to(weights) @ weights.T + intercepts).argmax(dim=1).cpu()
        right = int((found == labels[held]).sum())
        if right > most:
            best, most = strength, right
    return best


def held_out(labels: Tensor) -> Tensor:
    """Which pictures are kept from training while C is chosen, N bool: every fifth when sorted by class.

    So each class gives its fifth to within one picture; the only picture of a class is never taken.
    """
    order = numpy_rng("linear probe", len(labels)).permutation(len(labels))
    order = order[np.argsort(labels.numpy()[order], kind="stable")]
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[torch.from_numpy(order[FOLDS // 2 :: FOLDS].copy())] = True
    return held & (labels.bincount()[labels] > 1)


def with_scikit(features: Tensor, labels: Tensor, strength: float, steps: int = MOST_STEPS) -> Fit:
    """The classifier of least C · Σ cross-entropy + ½ ‖W‖²; fp64, on the CPU until it is found."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classes = int(labels.max()) + 1
    # Two classes make scikit-learn fit w = w₁ − w₀ alone under ½ ‖w‖², twice what ½ (‖w₀‖² + ‖w₁‖²) amounts to.
    model = LogisticRegression(C=strength * (2 if classes == 2 else 1), max_iter=steps, tol=TOLERANCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what is not settled after so many steps hardly matters
        warnings.filterwarnings("ignore", "The number of unique classes")  # few pictures a class are still classes
        model.fit(features.double().cpu().numpy(), labels.numpy())
    weights, intercepts = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if classes == 2:
        weights, intercepts = torch.cat([-weights, weights]) / 2, torch.cat([-intercepts, intercepts]) / 2
    return weights.to(features), intercepts.to(features)


def with_torch(features: Tensor, labels: Tensor, strength: float, steps: int = MOST_STEPS) -> Fit:
    """The same where the features are, in their precision; logits are made a block of pictures at a time."""
    classes, labels = int(labels.max()) + 1, labels.to(features.device)
    weights = features.new_zeros(classes, features.shape[1], requires_grad=True)
    intercepts = features.new_zeros(classes, requires_grad=True)
    rows = max(BLOCK // classes, 1)
    optimizer = torch.optim.LBFGS(
        [weights, intercepts], max_iter=steps, max_eval=2 * steps, history_size=20,
        tolerance_grad=TOLERANCE, tolerance_change=1e-10, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> Tensor:
        """Divided by C · N: of the same size whatever the number of pictures."""
        optimizer.zero_grad()
        value = weights.square().sum() / (2 * strength * len(features))
        value.backward()
        for block, wanted in zip(features.split(rows), labels.split(rows)):
            part = F.cross_entropy(block @ weights.T + intercepts, wanted, reduction="sum") / len(features)
            part.backward()
            value = value + part
        return value.detach()

    optimizer.step(objective)
    return weights.detach(), intercepts.detach()
