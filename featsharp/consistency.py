"""Compares a sharp map with what the teacher says of other views of the image: the loss of a sharpener.

Down(warp(sharp map, view)) must equal the teacher's map of the view (FeatUp, arXiv 2403.10516, §3.1; FeatSharp,
arXiv 2502.16025, §3.3). Everything is in PHI-S space.

Shapes: B images, J jittered views, C the teacher's width, h w its grid, f factor, H = f·h, W = f·w.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featsharp.adapter import Adapter
from featsharp.bias import change_penalty
from featsharp.config import SharpenerConfig
from featsharp.downsample import build_downsampler
from featsharp.multiview import fully_inside, look_up, warp
from featsharp.one_backward import one_backward
from featsharp.regularisers import crf, mmd, total_variation
from featsharp.tiles import Tiled
from teachers.features import Encoder, Size


class Sight(NamedTuple):
    """What the frozen teacher saw of a batch: all that a step needs to know of the images."""

    image: Tensor  # B×3×fR×fR, the base view
    low: Tensor  # B×C×h×w, of the base view
    tiles: Tiled  # B×C×fh×fw, of its tiles
    targets: Tensor  # J×B×C×h×w, of the jittered views
    to_base: Tensor  # J×B×3×3, jittered view → base view
    keep: Tensor | None  # J×B×K²×h×w, the downsampler's taps that are not dropped
    points: Tensor | None = None  # B×N×2, where the CRF term looks


class Uncertainty(nn.Module):
    """Sharp map B×C×H×W → B×1×H×W: the log of how far views may differ there, whoever is right; starts at 0."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.look = nn.Conv2d(width, hidden, 5, padding=2, padding_mode="replicate")
        self.out = nn.Conv2d(hidden, 1, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.look(x)))


class Consistency(nn.Module):
    """Everything that a sharpener's training learns: the adapter, the downsampler and the uncertainty."""

    def __init__(self, config: SharpenerConfig, encoder: Encoder):
        super().__init__()
        width = encoder.dims.spatial
        self.config = config
        self.adapter = Adapter(config, encoder)
        self.downsampler = build_downsampler(config.downsampler, width, config.factor)
        self.uncertainty = Uncertainty(width, config.losses.uncertainty_width) if config.losses.uncertainty else None

    def forward(self, sight: Sight) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, whose backward walks the adapter once, and figures for the log."""
        sharp = self.adapter(sight.low, sight.tiles, sight.image).float()
        logs: dict[str, Tensor] = {"mse": sharp.new_zeros(())}
        inputs = [sharp]
        parameters = list(self.downsampler.parameters())
        if self.uncertainty is not None:
            inputs.append(self.uncertainty(sharp.detach()).float())
        if self.adapter.bias is not None:
            parameters.extend(self.adapter.bias.parameters())
        terms = [self._view(sight, j, logs) for j in range(len(sight.targets))]
        return one_backward(inputs, parameters, terms + self._regularisers(sight)), logs

    def _regularisers(self, sight: Sight) -> list[Callable[..., Tensor]]:
        """The terms besides the views' that have a weight."""
        weights, bias, terms = self.config.losses, self.adapter.bias, []
        if weights.tv:
            terms.append(lambda sharp, *_: weights.tv * total_variation(sharp))
        if weights.crf and sight.points is not None:
            terms.append(lambda sharp, *_: weights.crf * crf(sharp, sight.image, sight.points))
        if weights.mmd:
            low = sight.low if bias is None else bias(sight.low).detach()
            terms.append(lambda sharp, *_: weights.mmd * mmd(sharp, low))
        if weights.conditional:
            around = self._differences(sight)
            terms.append(
                lambda *_: weights.conditional * change_penalty(bias(sight.low) - bias.fixed(sight.low), *around)
            )
        return terms

    @torch.no_grad()
    def _differences(self, sight: Sight) -> tuple[Tensor, Tensor]:
        """How the maps of the jittered views, laid over the base view's, differ from it, J×B×C×h×w; where they lie."""
        fixed, to_view = self.adapter.bias.fixed, torch.linalg.inv(sight.to_base)
        size = tuple(sight.low.shape[-2:])
        seen = [warp(fixed(view), look_up(where, size)) for view, where in zip(sight.targets, to_view)]
        valid = [fully_inside(where, size).float() for where in to_view]
        return torch.stack(seen) - fixed(sight.low), torch.stack(valid)

    def _view(self, sight: Sight, j: int, logs: dict[str, Tensor]):
        """The term of one jittered view: a function of the sharp map (and of the log uncertainty)."""
        share = 1 / len(sight.targets)
        size = tuple(sight.targets.shape[-2:])
        valid = fully_inside(sight.to_base[j], size).float()
        count = valid.sum().clamp(min=valid.numel() / 2)  # a view that sees little counts for little
        where = look_up(sight.to_base[j], size)

        def term(sharp: Tensor, log_spread: Tensor | None = None) -> Tensor:
            predicted, target = self.predict(sharp, sight, j), self.target(sight, j)
            error = self._distance(predicted, target).mean(1, keepdim=True)
            logs["mse"] = logs["mse"] + share * (error.detach() * valid).sum() / valid.sum().clamp(min=1)
            weight = valid * self._seams(sharp, where)
            if log_spread is None:
                return share * (weight * error).sum() / count
            spread = warp(log_spread, where, padding="border")
            return share * ((weight * (-spread).exp() * error).sum() / count + (valid * spread / 2).mean())

        return term

    def predict(self, sharp: Tensor, sight: Sight, j: int) -> Tensor:
        """What the teacher should say of view j, judging by the sharp map: B×C×h×w."""
        seen = warp(sharp, look_up(sight.to_base[j], tuple(sharp.shape[-2:])))
        return self.downsampler(seen, None if sight.keep is None else sight.keep[j])

    def target(self, sight: Sight, j: int) -> Tensor:
        """What the teacher says of view j, without its position noise: B×C×h×w."""
        return sight.targets[j] if self.adapter.bias is None else self.adapter.bias(sight.targets[j])

    def _distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        if self.config.losses.distance == "mse":
            return F.mse_loss(predicted.float(), target.float(), reduction="none")
        return F.smooth_l1_loss(predicted.float(), target.float(), reduction="none")

    def _seams(self, sharp: Tensor, where: Tensor) -> Tensor:
        """B×1×h×w, mean about 1: heavier where tiles meet, seen from a view; all ones without tiles."""
        if not self.adapter.upsampler.needs_tiles:
            return torch.ones_like(where[..., :1]).movedim(-1, 1)
        weights = seam_weights(tuple(sharp.shape[-2:]), self.config.factor, self.config.losses.seam_weight)
        return warp(weights.to(sharp.device).expand(len(sharp), -1, -1, -1), where, padding="border")


def seam_weights(size: Size, tiles: int, weight: float) -> Tensor:
    """1×1×H×W, mean 1: `weight` times as much on the two rows and two columns along each seam between tiles."""
    near = [torch.zeros(n, dtype=torch.bool) for n in size]
    for line, n in zip(near, size):
        for seam in range(n // tiles, n, n // tiles):
            line[seam - 1 : seam + 1] = True
    weights = torch.where(near[0][:, None] | near[1], weight, 1.0)
    return (weights / weights.mean())[None, None]
