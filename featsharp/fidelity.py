"""How well sharp maps predict what a teacher says of other views of an image: one number, higher is better.

Fidelity = (variance of the teacher's features) / (squared error of the prediction): 1 for the best constant. PHI-S
space has unit variance, so there it is 1 / error (FeatSharp, arXiv 2502.16025; PHI-S, arXiv 2410.01680).

Shapes: B images, J views, C the teacher's width, h w its grid, f factor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featsharp.consistency import Consistency, Sight
from featsharp.downsample import gaussian_logits, weighted_cells
from featsharp.multiview import fully_inside, look_up, warp
from featsharp.upsamplers.base import enlarge

# Bilinear needs no training but a downsampler: the best of these Gaussians (σ in low-resolution cells) is taken.
SIGMAS = (0.2, 0.3, 0.4, 0.55, 0.75, 1.0)


class Fidelity:
    """Sums over batches of sights, for a trained model and for bilinear upsampling of the same maps."""

    def __init__(self, model: Consistency):
        self.model = model
        self.errors: dict[str, Tensor] = {}  # squared error, a channel
        self.cells = 0.0

    @torch.no_grad()
    def update(self, sight: Sight) -> None:
        """Judge the sharp maps of one batch by its jittered views."""
        model, size = self.model, tuple(sight.targets.shape[-2:])
        maps = {"fidelity": model.adapter(sight.low, sight.tiles, sight.image).float()}
        plain = enlarge(sight.low if model.adapter.bias is None else model.adapter.bias(sight.low), model.config.factor)
        for j, to_base in enumerate(sight.to_base):
            valid = fully_inside(to_base, size)
            self.cells += valid.sum().item()
            target = model.target(sight, j)
            guess = model.predict(maps["fidelity"], sight, j)
            self._add("fidelity", guess, target, valid)
            self._add("fidelity_raw", guess, sight.targets[j], valid)
            seen = warp(plain, look_up(to_base, tuple(plain.shape[-2:])))
            for sigma in SIGMAS:
                self._add(f"bilinear {sigma}", _blurred(seen, sigma, model.config.factor), target, valid)

    def _add(self, name: str, guess: Tensor, target: Tensor, valid: Tensor) -> None:
        error = ((guess.float() - target.float()).square().mean(1, keepdim=True) * valid).sum().double()
        self.errors[name] = self.errors.get(name, 0.0) + error

    def result(self) -> dict[str, float]:
        """`fidelity` against targets without their position noise, `fidelity_raw` with it, `bilinear` as the first."""
        found = {name: self.cells / max(float(error), 1e-12) for name, error in self.errors.items()}
        bilinear = max(value for name, value in found.items() if name.startswith("bilinear"))
        return {"fidelity": found["fidelity"], "bilinear": bilinear, "fidelity_raw": found["fidelity_raw"]}


def _blurred(x: Tensor, sigma: float, factor: int) -> Tensor:
    """B×C×fh×fw → B×C×h×w by a fixed Gaussian; the border's cells repeat beyond it."""
    k = 3 * factor
    h, w = (n // factor for n in x.shape[-2:])
    weights = gaussian_logits(k, sigma * factor).to(x.device).softmax(0).view(1, -1, 1, 1).expand(len(x), -1, h, w)
    return weighted_cells(x, weights, factor)
