"""Rotations that spread a teacher's variance evenly over its channels, for any number of channels.

Shapes: n or C channels; every matrix is n×n, fp64, on the CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def hadamard(n: int) -> Tensor | None:
    """An orthogonal n×n fp64 matrix whose entries are all ±1/√n, or None where these constructions give none.

    Sylvester(2^i) ⊗ Paley I or II. Paley's also hold for powers of primes, but need arithmetic in the extension field
    for them (squares modulo q are not the squares of GF(q)), and no width of a known teacher asks for one.
    """
    twos = (n & -n).bit_length() - 1
    if n == 1 << twos:
        return _sylvester(twos) / math.sqrt(n)
    for i in range(twos - 1, -1, -1):
        paley = _paley(n >> i)
        if paley is not None:
            return torch.kron(_sylvester(i), paley) / math.sqrt(n)
    return None


def _sylvester(i: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(i):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix


def _paley(m: int) -> Tensor | None:
    """An m×m matrix of ±1 with orthogonal rows from the squares modulo a prime (Paley, 1933), or None."""
    if m % 4 == 0 and _is_prime(m - 1):  # then m − 1 ≡ 3 mod 4
        return torch.eye(m, dtype=torch.float64) + _bordered_jacobsthal(m - 1, skew=True)
    if m % 4 == 0 and _is_prime(m // 2 - 1) and (m // 2 - 1) % 4 == 1:
        core = _bordered_jacobsthal(m // 2 - 1, skew=False)
        off_diagonal = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(core, off_diagonal) + torch.kron(torch.eye(m // 2, dtype=torch.float64), diagonal)
    return None


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % d for d in range(2, math.isqrt(q) + 1))


def _bordered_jacobsthal(q: int, *, skew: bool) -> Tensor:
    """(q+1)×(q+1): zero corner, a border of ones (minus ones down the side if `skew`), χ(row − column) inside."""
    squares = {x * x % q for x in range(1, q)}
    chi = torch.tensor([0.0] + [1.0 if x in squares else -1.0 for x in range(1, q)], dtype=torch.float64)
    index = torch.arange(q)
    matrix = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    matrix[0, 1:] = 1
    matrix[1:, 0] = -1 if skew else 1
    matrix[1:, 1:] = chi[(index[:, None] - index[None, :]) % q]
    return matrix


def equal_diagonal_rotation(eigenvalues: Tensor) -> Tensor:
    """An orthogonal C×C fp64 matrix `R` for which the diagonal of `R·diag(eigenvalues)·Rᵀ` is constant, for any C.

    Starts from the Hartley matrix, the nearest thing to a Hadamard matrix that every width has (each channel sees all
    eigenvectors), then corrects it with at most C − 1 Givens rotations: each takes a channel below the mean and one
    above, and brings the nearer of the two to the mean exactly (the constructive proof of the Schur-Horn theorem).
    """
    n = len(eigenvalues)
    index = torch.arange(n, dtype=torch.float64)
    angle = (2 * math.pi / n) * (index[:, None] * index[None, :] % n)
    rotation = (angle.cos() + angle.sin()) / math.sqrt(n)
    matrix = (rotation * eigenvalues.double()) @ rotation.T
    mean = eigenvalues.double().mean().item()
    rotation, matrix = rotation.numpy(), matrix.numpy()
    for _ in range(n - 1):
        excess = matrix.diagonal() - mean
        i, j = int(excess.argmin()), int(excess.argmax())
        if max(-excess[i], excess[j]) <= 1e-14 * mean:
            break
        if excess[j] < -excess[i]:
            i, j = j, i
        a, b, d = excess[i], matrix[i, j], excess[j]
        # the root of a + 2·b·t + d·t² = 0 nearest zero, t = tan of the angle; a·d < 0, so it is real and b may be 0
        t = -a / (b + math.copysign(math.sqrt(b * b - a * d), b))
        c = 1 / math.hypot(1, t)
        s = t * c
        for m in (rotation, matrix, matrix.T):
            m[i], m[j] = c * m[i] + s * m[j], c * m[j] - s * m[i]
    return torch.from_numpy(rotation)
