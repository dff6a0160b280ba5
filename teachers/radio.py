"""The RADIO architecture: images → summary tokens and patch features, and from them every teacher's, through its heads.

Shapes: B images, H W pixels, h w grid, N = h·w patches, D width, T summary tokens (one a teacher), R registers.
Tokens are ordered `[T summaries | R registers | N patches]`. Sources: AM-RADIO (arXiv 2312.06709) for the heads and the
cropped position embedding, RADIOv2.5 (arXiv 2412.07679) for a summary token a teacher.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from teachers.errors import UserError
from teachers.features import Size, Whiten
from teachers.radio_heads import as_map, build_heads
from teachers.radio_patches import PatchGenerator
from teachers.radio_spec import RadioSpec, swiglu_hidden
from teachers.radio_windows import windowed_steps
from teachers.spectral import add_noise, folded_state, holding, reparametrise


class RadioOutput(NamedTuple):
    """RADIO's own return value; `features` is B×D×h×w (`NCHW`) or B×N×D (`NLC`)."""

    summary: Tensor | None
    features: Tensor


class SwiGlu(nn.Module):
    """…×D → …×D: (SiLU(x W₁) ∘ x W₂) W₃ with W₁ and W₂ in one matrix, under DINOv2's names."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def trunk_block(spec: RadioSpec, drop_path: float) -> nn.Module:
    """One of timm's transformer blocks."""
    from timm.models.vision_transformer import Block

    options = {"qkv_bias": True, "init_values": spec.layer_scale, "drop_path": drop_path}
    if spec.mlp == "swiglu":
        hidden = swiglu_hidden(spec.width, spec.mlp_ratio)
        options["mlp_layer"] = lambda **_: SwiGlu(spec.width, hidden)
    else:  # timm cuts the fraction off; ratios such as 4304/1152 must come out whole
        options["mlp_ratio"] = (round(spec.width * spec.mlp_ratio) + 0.5) / spec.width
    return Block(spec.width, spec.num_heads, **options)


class RadioModel(nn.Module):
    """The student: a ViT backbone with summary tokens, and two heads a teacher."""

    def __init__(self, spec: RadioSpec):
        super().__init__()
        from timm.layers import LayerNorm

        self.spec = spec
        self.input_conditioner = Whiten(spec.mean, spec.std)
        self.patch_generator = PatchGenerator(spec)
        rates = [spec.drop_path * i / max(spec.depth - 1, 1) for i in range(spec.depth)]
        self.blocks = nn.ModuleList(trunk_block(spec, rate) for rate in rates)
        # No last norm by default: heads begin with a Linear that any scale suits (RADIO leaves it out too).
        self.norm = LayerNorm(spec.width) if spec.final_norm else nn.Identity()
        self.heads = nn.ModuleDict({name: build_heads(spec.width, head) for name, head in spec.heads.items()})
        self.apply(_init_linear)
        if spec.spectral:
            reparametrise(self.blocks, keep=True)
        if spec.spectral_heads:
            reparametrise(self.heads, keep=True)
        if spec.damp:
            add_noise(self.blocks, spec.damp)

    @property
    def summary_slots(self) -> list[int]:
        """The tokens that a teacher supervises, in order: concatenated they are the backbone's summary."""
        return self.spec.summary_slots

    @property
    def summary_width(self) -> int:
        return len(self.summary_slots) * self.spec.width

    @property
    def first_patch(self) -> int:
        """Where the patches begin in the token sequence: T + R."""
        return len(self.patch_generator.tokens)

    def grid(self, images: Tensor) -> Size:
        """The (h, w) of the features of `images`."""
        return images.shape[2] // self.spec.patch, images.shape[3] // self.spec.patch

    def tokens(self, images: Tensor, window: int | None = None, frames: int = 1) -> Tensor:
        """Images in [0, 1] → all tokens of the last block, B×(T+R+N)×D; options as in `forward`."""
        (last,) = deque(self._steps(images, window, frames), maxlen=1)
        return self.norm(last())

    def intermediates(
        self,
        images: Tensor,
        indices: Sequence[int],
        *,
        window: int | None = None,
        frames: int = 1,
        stop_early: bool = False,
    ) -> list[Tensor]:
        """The tokens after the blocks `indices` (negative ones from the end), B×(T+R+N)×D each, before any last norm.

        In windowed mode summary tokens and registers are as the last global block left them.

        Args:
            stop_early: run no block behind the last one asked for.
        """
        depth = len(self.blocks)
        if not all(-depth <= index < depth for index in indices):
            raise UserError(f"there are no blocks {list(indices)}", expected=f"-{depth} to {depth - 1}")
        wanted, kept = {index % depth for index in indices}, {}
        for number, step in enumerate(self._steps(images, window, frames)):
            if number in wanted:
                kept[number] = step()
            if stop_early and len(kept) == len(wanted):
                break
        return [kept[index % depth] for index in indices]

    def forward(
        self,
        images: Tensor,
        *,
        window: int | None = None,
        freeze_trunk: bool = False,
        heads: Collection[str] | None = None,
        frames: int = 1,
    ) -> dict[str, RadioOutput]:
        """Images B×3×H×W in [0, 1] → `backbone` and heads as (summary, features B×C×h×w, or ×u·h×u·w, fp32).

        Args:
            window: most blocks see windows of window×window patches (ViTDet); sides must be multiples of it.
            freeze_trunk: no gradient reaches the trunk, and its forward keeps nothing for one.
            heads: only these; None: all.
            frames: images are clips of this many frames, which share a crop of the positions in training.
        """
        wanted = list(self.heads) if heads is None else [name for name in self.heads if name in heads]
        if heads is not None and len(wanted) != len(set(heads)):
            raise UserError(f"no such heads: {sorted(set(heads) - set(wanted))}", expected=", ".join(self.heads))
        with torch.no_grad() if freeze_trunk else nullcontext():
            tokens = self.tokens(images, window, frames)
        grid, patches = self.grid(images), tokens[:, self.first_patch :]
        out = {"backbone": RadioOutput(tokens[:, self.summary_slots].flatten(1).float(), as_map(patches.float(), grid))}
        for name in wanted:
            head, slot = self.heads[name], self.spec.token_of[name]
            summary = head["summary"](tokens[:, slot]) if "summary" in head else None
            out[name] = RadioOutput(summary, as_map(head["spatial"](patches), grid, self.spec.heads[name].up))
        return out

    def baked(self) -> tuple[RadioSpec, dict[str, Tensor]]:
        """The same student as a plain one: its description and weights, with reparametrisation and noise folded in.

        It answers as this one does in eval mode.
        """
        return replace(self.spec, spectral=False, spectral_heads=False, damp=0.0), folded_state(self)

    def _steps(self, images: Tensor, window: int | None, frames: int) -> Iterator[Callable[[], Tensor]]:
        """Runs the trunk; after each block yields what makes all its tokens, in the order of the image."""
        x = self.patch_generator(self.input_conditioner(images), frames)
        if window is not None:
            grid, period = self.grid(images), self.spec.window_period
            yield from windowed_steps(self._run, self.blocks, x, self.first_patch, grid, window, period)
            return
        for block in self.blocks:
            x = self._run(block, x)
            yield partial(_itself, x)

    def _run(self, block: nn.Module, tokens: Tensor) -> Tensor:
        if self.spec.activation_checkpointing and self.training:
            return checkpoint(block, tokens, use_reentrant=False, context_fn=_first_run_and_second)
        return block(tokens)


def _itself(tokens: Tensor) -> Tensor:
    return tokens


def _first_run_and_second() -> tuple[nullcontext, object]:
    return nullcontext(), holding()


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
