"""Whether other ranks train beside this one, and what all of them hold together; alone, each answer is one's own."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def several() -> bool:
    """Whether there are other ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def total(mine: Tensor) -> Tensor:
    """The sum over ranks; all of them call it together."""
    if several():
        dist.all_reduce(mine)
    return mine
