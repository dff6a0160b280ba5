"""PHI-S: turns a teacher's features into channels of exactly unit variance by one rotation and one scale, and back.

`y = α·Q(x − μ)` with `Q = H·Vᵀ`, `Σ = V·Λ·Vᵀ` the covariance of the features, `H` a Hadamard matrix and
`α = 1/√mean(Λ)` (PHI-S paper, arXiv 2410.01680, §3). The scale is the same in every direction, so an error in the
normalised space is the error in the teacher's space times α²: nothing is amplified, and a rank-deficient teacher is no
special case. Where no Hadamard matrix of the width can be constructed, `H` is a rotation that makes the diagonal of
`H·Λ·Hᵀ` constant exactly (Schur-Horn), which is all that unit variance asks for.

Shapes: B images, h w grid cells, C channels, n feature vectors seen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from teachers.errors import UserError
from teachers.ranks import several
from teachers.rotations import equal_diagonal_rotation, hadamard


class Moments:
    """Running count, mean (C) and centred second moment (C×C) of feature vectors, in fp64 (Chan et al., 1979)."""

    def __init__(self, channels: int, device: torch.device | str = "cpu"):
        self.n = 0
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.m2 = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Add every cell of `features` B×C×h×w; raises `UserError` where one is not finite."""
        x = features.detach().to(self.mean).movedim(1, -1).flatten(0, -2)
        if not torch.isfinite(x).all():
            raise UserError(
                "a teacher's features contain NaN or Inf",
                expected="finite features",
                todo="check its weights file and its dtype (fp16 overflows where bf16 does not)",
            )
        mean = x.mean(0)
        x = x - mean
        self._add(len(x), mean, x.T @ x)

    def merge(self, other: Moments) -> None:
        """Add what `other` has seen, as if its features had been given to `update`."""
        self._add(other.n, other.mean.to(self.mean), other.m2.to(self.m2))

    def _add(self, n: int, mean: Tensor, m2: Tensor) -> None:
        total = self.n + n
        if total == 0:
            return
        delta = mean - self.mean
        self.m2 += m2 + torch.outer(delta, delta) * (self.n * n / total)
        self.mean += delta * (n / total)
        self.n = total

    def all_reduce(self) -> None:
        """Merge over all ranks, in the order of their numbers, so that every rank holds the same; alone: nothing."""
        if not several():
            return
        mine = torch.cat([self.mean.new_tensor([self.n]), self.mean])
        theirs = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(theirs, mine)
        total = sum(int(one[0].item()) for one in theirs)
        if total == 0:
            return
        mean = sum(one[1:] * (one[0] / total) for one in theirs)
        delta = self.mean - mean
        self.m2 += torch.outer(delta, delta) * self.n
        dist.all_reduce(self.m2)
        self.n, self.mean = total, mean

    @property
    def covariance(self) -> Tensor:
        """Σ, C×C fp64."""
        return self.m2 / (self.n - 1)

    @property
    def variance(self) -> float:
        """Mean variance of a channel, tr Σ / C = φ²: the squared error of the best constant, in the teacher's space."""
        return (self.m2.diagonal().mean() / (self.n - 1)).item()


class PhiS(nn.Module):
    """The normaliser: `forward` to unit variance, `inverse` back; the identity until `fit` or `load_state_dict`.

    Both take features with the C channels along `dim` (1: B×C×h×w, −1: …×C), compute in fp32 at least (a bf16
    rotation would cost three digits of the target) and return that dtype.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("rotation", torch.eye(channels))
        self.register_buffer("alpha", torch.ones(()))

    def forward(self, x: Tensor, dim: int = 1) -> Tensor:
        """Teacher space → normalised space."""
        with torch.autocast(x.device.type, enabled=False):
            x = _at_least_fp32(x).movedim(dim, -1) - self.mean
            return ((x @ self.rotation.T.to(x.dtype)) * self.alpha).movedim(-1, dim)

    def inverse(self, y: Tensor, dim: int = 1) -> Tensor:
        """Normalised space → teacher space."""
        with torch.autocast(y.device.type, enabled=False):
            y = _at_least_fp32(y).movedim(dim, -1)
            return (y @ self.rotation.to(y.dtype) / self.alpha + self.mean).movedim(-1, dim)

    def fuse(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight and bias of a Linear that does `inverse(linear(x), dim=-1)`, so that an export needs no normaliser.

        A Linear of u²·C outputs (a head that upsamples by u) is folded one group of C rows at a time.
        """
        channels = len(self.mean)
        if linear.out_features % channels:
            raise ValueError(f"a Linear of {linear.out_features} outputs does not end in {channels} channels")
        back = self.rotation.double().T / self.alpha.double()
        weight = linear.weight.detach().double().view(-1, channels, linear.in_features)
        weight = torch.einsum("ck,gki->gci", back, weight).flatten(0, 1)
        bias = linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
        bias = (bias.double().view(-1, channels) @ back.T + self.mean.double()).flatten()
        return weight.to(linear.weight.dtype), bias.to(linear.weight.dtype)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def fit(moments: Moments) -> PhiS:
    """The normaliser of the features that `moments` has seen, on their device; needs more of them than channels."""
    channels = len(moments.mean)
    check_count(moments.n, channels)
    covariance = moments.covariance.cpu()  # LAPACK on the CPU: the same bits wherever the features were computed
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    eigenvalues = eigenvalues.clamp(min=0)
    if not eigenvalues.sum() > 0:
        raise UserError("PHI-S cannot scale constant features: the teacher answers the same for every cell")
    eigenvectors = eigenvectors * _signs(eigenvectors)
    balance = hadamard(channels)
    if balance is None:
        balance = equal_diagonal_rotation(eigenvalues)
    phi_s = PhiS(channels)
    phi_s.mean.copy_(moments.mean)
    phi_s.rotation.copy_(balance @ eigenvectors.T)
    phi_s.alpha.fill_(eigenvalues.mean().rsqrt().item())
    return phi_s.to(moments.mean.device)


def check_count(seen: int, channels: int, teacher: str = "") -> None:
    """Raise `UserError` where so many feature vectors are too few for a covariance of so many channels."""
    if seen <= channels:
        of = f" of {teacher}" if teacher else ""
        raise UserError(
            f"PHI-S needs more feature vectors than channels: {seen} were seen for {channels} channels{of}",
            expected=f"at least {channels + 1} grid cells, better {10 * channels}",
            todo="let the statistics see more batches: raise statistics.batches",
        )


def _signs(eigenvectors: Tensor) -> Tensor:
    """±1 a column: an eigenvector's sign is arbitrary, so make its largest entry positive."""
    largest = eigenvectors.abs().argmax(0, keepdim=True)
    return torch.where(eigenvectors.gather(0, largest) < 0, -1.0, 1.0).to(eigenvectors)


# Statistics kept on disk ------------------------------------------------------------------------------------------


def cached_moments(
    folder: Path | str | None,
    identity: str,
    data: str,
    n: int,
    build: Callable[[], Moments],
    say: Callable[[str], None] = print,
) -> Moments:
    """The moments kept in `folder` for this encoder, data note and number of batches; else `build()`, then kept.

    All ranks call it together: unless every one of them finds the entry, all build. A damaged entry is rebuilt.
    Without a folder nothing is looked for and nothing kept.
    """
    if folder is None:
        return build()
    key = hashlib.sha256(repr((identity, data, n)).encode()).hexdigest()[:16]
    path = Path(folder) / f"moments-{identity}-{key}.safetensors"
    found = _read_moments(path, say)
    if not _all_ranks(found is not None):
        found = build()
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one writer a machine
            _write_moments(found, path, say)
    return found


def _read_moments(path: Path, say: Callable[[str], None]) -> Moments | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        moments = Moments(len(tensors["mean"]))
        moments.n, moments.mean, moments.m2 = int(tensors["n"]), tensors["mean"], tensors["m2"]
        return moments
    except (SafetensorError, KeyError, OSError) as error:
        say(f"{path}: damaged teacher statistics ({error}); they are made again")
        return None


def _write_moments(moments: Moments, path: Path, say: Callable[[str], None]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = {"n": torch.tensor(moments.n), "mean": moments.mean.cpu(), "m2": moments.m2.cpu()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # a full disk: the statistics are at hand, only the next run pays
        say(f"{path}: teacher statistics could not be kept ({error})")
        temporary.unlink(missing_ok=True)


def _all_ranks(mine: bool) -> bool:
    if not several():
        return mine
    answers: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(answers, mine)
    return all(answers)
