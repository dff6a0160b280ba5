"""AnyUp: as JAFAR, but in a window, and with keys that know a map of any width; one set of weights for all teachers.

Wimmer et al., arXiv 2510.12764, §4. What the keys know of the map is the mean over its channels of how each of them,
alone, answers to a learned set of small filters: its width and the order of its channels do not matter.

Shapes: B images, C the teacher's width, D of queries and keys (and filters), h w the teacher's grid, f factor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from featsharp.config import SharpenerConfig
from featsharp.cross_attention import cross_attention, start_sigma
from featsharp.guidance import ChannelNorm, Guide, encoder
from featsharp.upsamplers.base import Upsampler

CHANNELS = 64  # of the map, filtered at a time: each becomes D maps


class AnyWidth(nn.Module):
    """B×C×h×w, any C → B×D×h×w: mean over channels p of softmax_j(p ∗ ψ_j), with D learned filters ψ_j."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.filters = nn.Conv2d(1, width, kernel, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        reach = self.filters.kernel_size[0] // 2
        padded = F.pad(x, (reach,) * 4, mode="replicate")
        # The sum is in fp32 at least: of a thousand channels, the last would be too small to be heard in bf16.
        return (sum(map(self._lean, padded.split(CHANNELS, 1))) / x.shape[1]).to(x.dtype)

    def _lean(self, channels: Tensor) -> Tensor:
        """`_answers`; keeps the channels alone for the backward pass, not their D answers each."""
        if not torch.is_grad_enabled():
            return self._answers(channels)
        return checkpoint(self._answers, channels, use_reentrant=False, preserve_rng_state=False)

    def _answers(self, channels: Tensor) -> Tensor:
        answers = self.filters(channels.flatten(0, 1)[:, None])
        answers = answers.to(torch.promote_types(answers.dtype, torch.float32)).softmax(1)
        return answers.unflatten(0, channels.shape[:2]).sum(1)


class AnyUp(Upsampler):
    """Window cross attention, image to map. 0.75 M parameters at D = 128, whatever C."""

    needs_tiles = False
    keeps_constants = True
    memory_budget: int | None = None  # bytes of the attention; see `budget.limit`

    def __init__(self, width: int, config: SharpenerConfig):
        super().__init__(width, config)
        self.config, self.most = config.anyup, config.max_cells_per_call
        d = self.config.width
        self.guide = Guide(self.config)
        self.content = AnyWidth(d, self.config.filter)
        self.join = encoder(2 * d, d, self.config.blocks, first=3)
        self.query_norm, self.key_norm = ChannelNorm(d), ChannelNorm(d)
        self.sigma = start_sigma(self.config)

    def forward(self, low: Tensor, tiles: Tensor | None, image: Tensor) -> Tensor:
        queries, keys = self.guide(image, tuple(low.shape[-2:]), self.factor)
        # D answers that sum to 1: about as large as the keys' other half after this.
        content = self.config.width * self.content(low) - 1
        queries, keys = self.query_norm(queries), self.key_norm(self.join(torch.cat([keys, content], 1)))
        options = {"sigma": self.sigma, "most": self.most, "budget": self.memory_budget}
        radius, heads = self.config.window // 2, self.config.heads
        return cross_attention(queries, keys, low, self.factor, heads, radius=radius, **options)
