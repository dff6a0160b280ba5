"""Gives a module's weight matrices a learned largest singular value, or noise in training; folds both into weights.

W → W · scale / σ(W): how much a layer can stretch is one number that is learned on its own, whatever the matrix does
(spectral reparametrisation, Zhai et al., arXiv 2303.06296, as RADIO and FeatSharp use it). σ is followed by power
iteration, a step a training forward, as in spectral normalisation (Miyato et al., arXiv 1802.05957).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from teachers.features import has_values
from teachers.seeding import torch_rng

FLOOR = 0.05  # of the learned value, so that no layer dies
CHUNKS = {"qkv": 3, "w12": 2}  # matrices that are several in one: each gets its own value
START_STEPS = 20
SMALLEST = 1e-4  # of what the learned value adds to the floor at first
_holding: ContextVar[bool] = ContextVar("holding", default=False)


@contextmanager
def holding() -> Iterator[None]:
    """Inside, power iteration stands still: a checkpointed forward that is run again must meet the same weights."""
    token = _holding.set(True)
    try:
        yield
    finally:
        _holding.reset(token)


class SpectralScale(nn.Module):
    """out×in → the same with a largest singular value of softplus(spectral) + 0.05, for each of `chunks` row blocks.

    Args:
        keep: begin at the weight's own largest singular values, so that nothing changes at first (RADIO), and not at
            1. The values are then chunks×1×1: weight decay, which spares vectors, is meant to reach them.
    """

    def __init__(self, weight: Tensor, chunks: int, keep: bool = False):
        super().__init__()
        self.chunks, self.keep = chunks, keep
        left, right, spectral = self._first(weight)
        self.spectral = nn.Parameter(spectral)
        self.register_buffer("left", left)  # chunks×rows, the singular vectors of the largest singular values
        self.register_buffer("right", right)  # chunks×in

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast("cpu" if weight.is_meta else weight.device.type, enabled=False):
            blocks = weight.float().unflatten(0, (self.chunks, -1))
            if self.training and not _holding.get():
                self._follow(blocks.detach())
            # Copies: the next step changes the buffers, and autograd still needs these.
            largest = _largest(self.left.clone(), blocks, self.right.clone())
            scale = (F.softplus(self.spectral.float().flatten()) + FLOOR) / (largest + 1e-6)
            return (blocks * scale[:, None, None]).flatten(0, 1).to(weight.dtype)

    @torch.no_grad()
    def restart(self, weight: Tensor) -> None:
        """Begin again from another weight, which has just been put in the old one's place."""
        for mine, new in zip((self.left, self.right, self.spectral), self._first(weight)):
            mine.copy_(new)

    @torch.no_grad()
    def _follow(self, blocks: Tensor) -> None:
        self.left.copy_(F.normalize(torch.einsum("nrc,nc->nr", blocks, self.right.to(blocks.dtype)), dim=-1))
        self.right.copy_(F.normalize(torch.einsum("nrc,nr->nc", blocks, self.left.to(blocks.dtype)), dim=-1))

    def _first(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Singular vectors and the learned value at the beginning."""
        blocks = weight.detach().float().unflatten(0, (self.chunks, -1))
        left, right = _leading(blocks)
        if not self.keep:
            return left, right, torch.full((self.chunks,), math.log(math.expm1(1 - FLOOR)), device=weight.device)
        above = (_largest(left, blocks, right) - FLOOR).clamp(min=SMALLEST)
        return left, right, (above + torch.log(-torch.expm1(-above)))[:, None, None]  # softplus⁻¹, also of large ones


def _largest(left: Tensor, blocks: Tensor, right: Tensor) -> Tensor:
    return torch.einsum("nr,nrc,nc->n", left.to(blocks.dtype), blocks, right.to(blocks.dtype))


def _leading(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """N×R×C → the left and right singular vectors of the largest singular values, N×R and N×C.

    Iterates a few vectors together: a random matrix has many singular values near the largest, and one would be slow.
    """
    n, rows, columns = blocks.shape
    if not has_values(blocks):
        return blocks.new_empty(n, rows), blocks.new_empty(n, columns)
    few = min(8, rows, columns)
    rng = torch_rng("spectral")  # of its own: the same on every rank, whenever it is asked
    right = torch.randn(n, columns, few, generator=rng, dtype=blocks.dtype, device="cpu")
    right = torch.linalg.qr(right.to(blocks.device))[0]
    for _ in range(START_STEPS):
        right = torch.linalg.qr(blocks.mT @ (blocks @ right))[0]
    left, _, turn = torch.linalg.svd(blocks @ right, full_matrices=False)
    return left[..., 0].contiguous(), (right @ turn[:, 0, :, None])[..., 0].contiguous()


class WeightNoise(nn.Module):
    """W → W ∘ ξ with ξ ~ N(1, deviation²) drawn anew every training forward (DAMP, arXiv 2406.16540).

    It draws from torch's own generator, whose state a checkpointed forward puts back before it runs again.
    """

    def __init__(self, deviation: float):
        super().__init__()
        self.deviation = deviation

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (1 + self.deviation * torch.randn_like(weight)) if self.training else weight


def reparametrise(module: nn.Module, keep: bool = False) -> None:
    """Every `nn.Linear` in `module` gets a learned largest singular value (`keep`: see `SpectralScale`)."""
    for name, linear in _linears(module):
        chunks = CHUNKS.get(name.rpartition(".")[2], 1)
        parametrize.register_parametrization(linear, "weight", SpectralScale(linear.weight, chunks, keep))


def add_noise(module: nn.Module, deviation: float) -> None:
    """Every `nn.Linear` in `module` gets multiplicative weight noise in training."""
    for _, linear in _linears(module):
        parametrize.register_parametrization(linear, "weight", WeightNoise(deviation))


def _linears(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]


@torch.no_grad()
def folded_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of the same module without all this, which answers as `module` in eval mode does."""
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


@torch.no_grad()
def load_folded(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put `state` (as `folded_state` gives it) into `module`, whose reparametrised weights begin again from it."""
    own = {key: tensor for key, tensor in module.state_dict().items() if ".parametrizations." not in key}
    plain = dict(state)
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part, "weight"):
            weight = plain.pop(f"{name}.weight")
            part.parametrizations.weight.original.copy_(weight)
            for one in part.parametrizations.weight:
                if isinstance(one, SpectralScale):
                    one.restart(part.parametrizations.weight.original)
    assert plain.keys() == own.keys(), sorted(plain.keys() ^ own.keys())[:5]
    module.load_state_dict(plain, strict=False)
