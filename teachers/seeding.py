"""Turns a seed and a few names (stream, step, rank) into an independent random generator.

Nothing in this project carries generator state from step to step: whatever is drawn is a function of the run's
seed and of *where* it is drawn. That is what makes a resumed run equal to an uninterrupted one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Part = int | str


def seed_of(*parts: Part) -> int:
    """A 63-bit seed that depends on every part and on their order, the same on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def torch_rng(*parts: Part, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded from `parts`."""
    return torch.Generator(device=device).manual_seed(seed_of(*parts))


def numpy_rng(*parts: Part) -> np.random.Generator:
    """A numpy generator seeded from `parts`."""
    return np.random.default_rng(seed_of(*parts))


@contextmanager
def seeded(*parts: Part) -> Iterator[None]:
    """What a library draws inside from torch's global CPU generator (its initialisers) is a function of `parts`.

    The generator is afterwards what it was before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*parts))
        yield
