"""Gives every weight matrix of a sharpener a learned largest singular value, 1 at first; folds it back into weights.

W → W · scale / σ(W): how much a layer can stretch is one number that is learned on its own, whatever the matrix does
(spectral reparametrisation, Zhai et al., arXiv 2303.06296, as FeatSharp uses it). σ is followed by power iteration, a
step a training step, as in spectral normalisation (Miyato et al., arXiv 1802.05957).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

FLOOR = 0.05  # of the learned value, so that no layer dies
CHUNKS = {"qkv": 3, "w12": 2}  # matrices that are several in one: each gets its own value
START_STEPS = 15


class SpectralScale(nn.Module):
    """out×in → the same with a largest singular value of softplus(spectral) + 0.05, for each of `chunks` row blocks."""

    def __init__(self, weight: Tensor, chunks: int):
        super().__init__()
        self.chunks = chunks
        self.spectral = nn.Parameter(torch.full((chunks,), math.log(math.expm1(1 - FLOOR))))
        left, right = _leading(weight.detach().float().unflatten(0, (chunks, -1)))
        self.register_buffer("left", left)  # chunks×rows, the singular vectors of the largest singular values
        self.register_buffer("right", right)  # chunks×in

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast("cpu" if weight.is_meta else weight.device.type, enabled=False):
            blocks = weight.float().unflatten(0, (self.chunks, -1))
            if self.training:
                self._follow(blocks.detach())
            # Copies: the next step changes the buffers, and autograd still needs these.
            largest = torch.einsum("nr,nrc,nc->n", self.left.clone(), blocks, self.right.clone())
            scale = (F.softplus(self.spectral.float()) + FLOOR) / (largest + 1e-6)
            return (blocks * scale[:, None, None]).flatten(0, 1).to(weight.dtype)

    @torch.no_grad()
    def _follow(self, blocks: Tensor) -> None:
        self.left.copy_(F.normalize(torch.einsum("nrc,nc->nr", blocks, self.right), dim=-1))
        self.right.copy_(F.normalize(torch.einsum("nrc,nr->nc", blocks, self.left), dim=-1))


def _leading(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """N×R×C → the left and right singular vectors of the largest singular values, N×R and N×C.

    Iterates a few vectors together: a random matrix has many singular values near the largest, and one would be slow.
    """
    n, rows, columns = blocks.shape
    if blocks.is_meta:
        return blocks.new_empty(n, rows), blocks.new_empty(n, columns)
    few = min(8, rows, columns)
    right = torch.linalg.qr(torch.randn(n, columns, few, device=blocks.device, dtype=blocks.dtype))[0]
    for _ in range(START_STEPS):
        right = torch.linalg.qr(blocks.mT @ (blocks @ right))[0]
    left, _, turn = torch.linalg.svd(blocks @ right, full_matrices=False)
    return left[..., 0].contiguous(), (right @ turn[:, 0, :, None])[..., 0].contiguous()


def reparametrise(module: nn.Module) -> None:
    """Every `nn.Linear` in `module` gets a learned largest singular value."""
    linears = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    for name, linear in linears:
        chunks = CHUNKS.get(name.rpartition(".")[2], 1)
        parametrize.register_parametrization(linear, "weight", SpectralScale(linear.weight, chunks))


@torch.no_grad()
def folded_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of the same module without the reparametrisation, which answers as `module` in eval mode does."""
    state = module.state_dict()
    for name, part in module.named_modules():
        if not parametrize.is_parametrized(part, "weight"):
            continue
        own = f"{name}.parametrizations."
        state = {key: value for key, value in state.items() if not key.startswith(own)}
        training = part.parametrizations.training
        part.parametrizations.eval()
        state[f"{name}.weight"] = part.weight
        part.parametrizations.train(training)
    return state
