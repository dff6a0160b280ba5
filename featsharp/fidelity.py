"""How well sharp maps predict what a teacher says of other views of the image: one number, higher is better.

Fidelity = (variance of the teacher's features) / (squared error of the prediction): 1 for the best constant. PHI-S
space has unit variance, so there it is 1 / error (FeatSharp, arXiv 2502.16025; PHI-S, arXiv 2410.01680).

`python -m featsharp.fidelity RUN...` measures trained sharpeners on held-out pictures and writes a report.

Shapes: N pictures, B images, J views, C the teacher's width, h w its grid, f factor.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
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

# Bilinear needs no training but a downsampler: the best of these Gaussians (σ in low-resolution cells) is taken.
SIGMAS = (0.2, 0.3, 0.4, 0.55, 0.75, 1.0)
RESAMPLES, LEVEL = 2000, 0.95  # of the bootstrap


def fixed_views(config: ViewsConfig, first: int, count: int, size: Size) -> Views:
    """The views of held-out pictures number `first`, `first` + 1, ...: the same for every run and however batched."""
    drawn = [draw_views(config, 1, size, torch_rng("fidelity", first + i)) for i in range(count)]
    return Views(torch.cat([views.base for views in drawn]), torch.cat([views.jitters for views in drawn], 1))


class Fidelity:
    """Gathers, a picture, the errors of a trained model and of bilinear upsampling of the same maps."""

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
        cells, errors = torch.zeros(len(sight.image)), {}
        for j, to_base in enumerate(sight.to_base):
            valid = fully_inside(to_base, size)
            cells += valid.sum((1, 2, 3)).cpu()
            raw, target = sight.targets[j], model.target(sight, j)
            guess = model.predict(sharp, sight, j)
            found = {"fidelity": _error(guess, target, valid), "fidelity_raw": _error(guess, raw, valid)}
            for name, low in plain.items():
                seen = warp(low, look_up(to_base, tuple(low.shape[-2:])))
                for sigma in SIGMAS:
                    blurred = _blurred(seen, sigma, model.config.factor)
                    found[f"{name} {sigma}"] = _error(blurred, raw if name == "bilinear_raw" else target, valid)
            errors = {name: errors.get(name, 0) + error for name, error in found.items()}
        self.cells.append(cells.double())
        for name, error in errors.items():
            self.errors.setdefault(name, []).append(error)

    def sums(self) -> dict[str, np.ndarray]:
        """N numbers a picture: `cells`, and the squared errors of `fidelity`, `fidelity_raw`, `bilinear` and
        `bilinear_raw` (each of these two by its best Gaussian over all pictures)."""
        errors = {name: torch.cat(batches).numpy() for name, batches in self.errors.items()}
        bad = [name for name, error in errors.items() if not np.isfinite(error).all()]
        if bad:
            raise UserError(
                f"the errors of {bad[0]} are NaN or infinite",
                expected="finite features of the teacher, and finite weights of the sharpener",
                todo="look at the training's curves; for a teacher in fp16 try the option dtype=fp32",
            )
        for name in ("bilinear", "bilinear_raw"):
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
    """A figure and its 95 % interval over pictures."""

    value: float
    low: float
    high: float


def ratio(part: np.ndarray, whole: np.ndarray, draws: np.ndarray | None = None) -> Estimate:
    """Σ part / Σ whole of N pictures, and the same of each of the resamples `draws` R×N (see `resamples`)."""
    value = part.sum() / max(whole.sum(), 1e-12)
    if draws is None:
        return Estimate(float(value), float("nan"), float("nan"))
    drawn = (draws @ part) / np.maximum(draws @ whole, 1e-12)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high))


def resamples(pictures: int) -> np.ndarray | None:
    """How often each picture is drawn in each bootstrap resample, R×N; the same for every run, so that they pair.

    None for fewer than two pictures, of which no interval can be had.
    """
    if pictures < 2:
        return None
    rng = numpy_rng("fidelity resamples", pictures)
    return rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=RESAMPLES)


def estimates(sums: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """What `Fidelity.sums` gathered → the figures with intervals, and `gain`: fidelity as a multiple of bilinear's,
    both judged by the same targets, pictures and views."""
    draws = resamples(len(sums["cells"]))
    found = {name: ratio(sums["cells"], error, draws) for name, error in sums.items() if name != "cells"}
    return {**found, "gain": ratio(sums["bilinear"], sums["fidelity"], draws)}


if __name__ == "__main__":
    from featsharp.fidelity_command import main

    sys.exit(main())
