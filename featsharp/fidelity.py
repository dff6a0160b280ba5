"""How well sharp maps predict what a teacher says of other views of the image: one number, higher is better.

Fidelity = (variance of the teacher's features) / (squared error of the prediction): 1 for the best constant. PHI-S
space has unit variance, so there it is 1 / error (FeatSharp, arXiv 2502.16025; PHI-S, arXiv 2410.01680).

`python -m featsharp.fidelity RUN...` measures trained sharpeners on held-out pictures and writes a report.

Shapes: N pictures, B images, J views, C the teacher's width, h w its grid, f factor.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from featsharp.config import ViewsConfig
from featsharp.consistency import Consistency, Sight
from featsharp.downsample import gaussian_logits, weighted_cells
from featsharp.multiview import Views, draw_views, fully_inside, look_up, warp
from featsharp.upsamplers.base import enlarge
from teachers.errors import UserError
from teachers.features import Size
from teachers.seeding import numpy_rng, torch_rng

# What needs no training has no downsampler either: the best of these Gaussians (σ in low-resolution cells) is taken.
SIGMAS = (0.2, 0.3, 0.4, 0.55, 0.75, 1.0)
RESAMPLES, LEVEL = 2000, 0.95  # of the bootstrap


def fixed_views(config: ViewsConfig, first: int, count: int, size: Size) -> Views:
    """The views of held-out pictures number `first`, `first` + 1, ...: the same for every run and however batched."""
    drawn = [draw_views(config, 1, size, torch_rng("fidelity", first + i)) for i in range(count)]
    return Views(torch.cat([views.base for views in drawn]), torch.cat([views.jitters for views in drawn], 1))


class Fidelity:
    """Gathers, a picture, the errors of a trained model and of bilinear upsampling of the same maps.

    A model without a downsampler (None) is judged by the best Gaussian, as bilinear is.
    """

    def __init__(self, model: Consistency):
        self.model = model
        self.errors: dict[str, list[Tensor]] = {}  # squared errors, a channel: a tensor B a batch
        self.cells: list[Tensor] = []  # cells that were compared

    def __len__(self) -> int:
        """Pictures judged so far."""
        return sum(map(len, self.cells))

    @torch.no_grad()
    def update(self, sight: Sight) -> None:
        """Judge the sharp maps of one batch by its jittered views."""
        model, size = self.model, tuple(sight.targets.shape[-2:])
        sharp = model.adapter(sight.low, sight.tiles, sight.image).float()
        plain = {"bilinear_raw": sight.low}
        plain["bilinear"] = sight.low if model.adapter.bias is None else model.adapter.bias(sight.low)
        plain = {name: enlarge(low.float(), model.config.factor) for name, low in plain.items()}
        if model.downsampler is None:
            plain |= {"fidelity": sharp, "fidelity_raw": sharp}
        cells, errors = torch.zeros(len(sight.image)), {}
        for j, to_base in enumerate(sight.to_base):
            valid = fully_inside(to_base, size)
            cells += valid.sum((1, 2, 3)).cpu()
            raw, target, found = sight.targets[j], model.target(sight, j), {}
            if model.downsampler is not None:
                guess = model.predict(sharp, sight, j)
                found = {"fidelity": _error(guess, target, valid), "fidelity_raw": _error(guess, raw, valid)}
            for name, fine in plain.items():
                seen = warp(fine, look_up(to_base, tuple(fine.shape[-2:])))
                for sigma in SIGMAS:
                    blurred = _blurred(seen, sigma, model.config.factor)
                    found[f"{name} {sigma}"] = _error(blurred, raw if name.endswith("_raw") else target, valid)
            errors = {name: errors.get(name, 0) + error for name, error in found.items()}
        self.cells.append(cells.double())
        for name, error in errors.items():
            self.errors.setdefault(name, []).append(error)

    def sums(self) -> dict[str, np.ndarray]:
        """N numbers a picture: `cells`, and the squared errors of `fidelity`, `fidelity_raw`, `bilinear` and
        `bilinear_raw` (what has no downsampler by its best Gaussian over all pictures)."""
        errors = {name: torch.cat(batches).numpy() for name, batches in self.errors.items()}
        bad = [name for name, error in errors.items() if not np.isfinite(error).all()]
        if bad:
            raise UserError(
                f"the errors of {bad[0]} are NaN or infinite",
                expected="finite features of the teacher, and finite weights of the sharpener",
                todo="look at the training's curves; for a teacher in fp16 try the option dtype=fp32",
            )
        for name in ("bilinear", "bilinear_raw", "fidelity", "fidelity_raw"):
            if name not in errors:
                gaussians = [errors.pop(f"{name} {sigma}") for sigma in SIGMAS]
                errors[name] = min(gaussians, key=lambda error: error.sum())
        return {"cells": torch.cat(self.cells).numpy(), **errors}

    def result(self) -> dict[str, float]:
        """`fidelity` against targets without their position noise, `fidelity_raw` with it, `bilinear` as the first."""
        sums = self.sums()
        return {name: ratio(sums["cells"], sums[name]).value for name in ("fidelity", "bilinear", "fidelity_raw")}


def _error(guess: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """The mean over channels of the squared error, summed over valid cells: B, on the CPU."""
    return ((guess.float() - target.float()).square().mean(1, keepdim=True) * valid).sum((1, 2, 3)).cpu().double()


def _blurred(x: Tensor, sigma: float, factor: int) -> Tensor:
    """B×C×fh×fw → B×C×h×w by a fixed Gaussian; the border's cells repeat beyond it."""
    k = 3 * factor
    h, w = (n // factor for n in x.shape[-2:])
    weights = gaussian_logits(k, sigma * factor).to(x.device).softmax(0).view(1, -1, 1, 1).expand(len(x), -1, h, w)
    return weighted_cells(x, weights, factor)


class Estimate(NamedTuple):
    """A figure and its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


class Drawn(NamedTuple):
    """A figure, and what it is in each of the bootstrap's resamples (None: too few pictures to draw from)."""

    value: float
    again: np.ndarray | None

    def over(self, other: Drawn) -> Drawn:
        """The quotient of two figures of the same pictures: what both owe to the pictures drawn cancels."""
        again = None if self.again is None or other.again is None else self.again / other.again
        return Drawn(self.value / other.value, again)

    def estimate(self) -> Estimate:
        if self.again is None:
            return Estimate(self.value, float("nan"), float("nan"))
        low, high = np.quantile(self.again, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(self.value, float(low), float(high))


def ratio(part: np.ndarray, whole: np.ndarray, draws: np.ndarray | None = None) -> Drawn:
    """Σ part / Σ whole over N pictures; of S×N, the mean over S trainings, which are drawn like the pictures.

    `draws` R×N: see `resamples`.
    """
    part, whole = np.atleast_2d(part), np.atleast_2d(whole)
    value = float((part.sum(1) / np.maximum(whole.sum(1), 1e-12)).mean())
    if draws is None:
        return Drawn(value, None)
    by_training = (draws @ part.T) / np.maximum(draws @ whole.T, 1e-12)  # R×S
    return Drawn(value, (by_training * _weights("trainings", len(part), len(draws))).mean(1))


def resamples(pictures: int) -> np.ndarray | None:
    """How often each picture is drawn in each bootstrap resample, R×N; the same for every run, so that they pair.

    None for fewer than two pictures, of which no interval can be had.
    """
    return None if pictures < 2 else _weights("resamples", pictures, RESAMPLES)


def _weights(what: str, n: int, times: int) -> np.ndarray:
    """How often each of n is drawn when n are drawn, `times`×n."""
    return numpy_rng(f"fidelity {what}", n).multinomial(n, np.full(n, 1 / n), size=times)


def figures(trainings: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Drawn]:
    """What `Fidelity.sums` gathered of trainings that differ by their seed → the figures, and `gain`: fidelity as a
    multiple of bilinear's, both judged by the same targets, pictures and views."""
    sums = {name: np.stack([training[name] for training in trainings]) for name in trainings[0]}
    draws = resamples(sums["cells"].shape[1])
    found = {name: ratio(sums["cells"], error, draws) for name, error in sums.items() if name != "cells"}
    return {**found, "gain": found["fidelity"].over(found["bilinear"])}


if __name__ == "__main__":
    from featsharp.fidelity_command import main

    sys.exit(main())
