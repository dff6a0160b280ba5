"""The RADIO architecture: images → summary tokens and patch features, and from them every teacher's, through its heads.

Shapes: B images, H W pixels, h w grid, N = h·w patches, D width, T summary tokens (one a teacher), R registers.
Tokens are ordered `[T summaries | R registers | N patches]`. Sources: AM-RADIO (arXiv 2312.06709) for the heads and the
cropped position embedding, RADIOv2.5 (arXiv 2412.07679) for a summary token a teacher.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from teachers.features import Size, Whiten
from teachers.stem import conv_stem, stem_strides

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class HeadSpec:
    """One teacher's widths; `summary` is None for a teacher without one (its token stays, unsupervised)."""

    summary: int | None
    spatial: int


@dataclass(frozen=True)
class RadioSpec:
    """All that it takes to build the module again (an export's config.json)."""

    patch: int
    width: int
    depth: int
    num_heads: int
    cpe_max: int
    registers: int
    heads: dict[str, HeadSpec]
    head_hidden: int
    head_blocks: int
    stem: str = "linear"  # or conv
    position_dropout: float = 0.0
    drop_path: float = 0.0
    activation_checkpointing: bool = False
    mean: tuple[float, ...] = field(default=CLIP_MEAN)
    std: tuple[float, ...] = field(default=CLIP_STD)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RadioSpec:
        heads = {name: HeadSpec(**spec) for name, spec in data["heads"].items()}
        return cls(**{**data, "heads": heads, "mean": tuple(data["mean"]), "std": tuple(data["std"])})


class RadioOutput(NamedTuple):
    """RADIO's own return value; `features` is B×D×h×w (`NCHW`) or B×N×D (`NLC`)."""

    summary: Tensor | None
    features: Tensor


def random_position_crop(batch: int, device: torch.device | str, generator: torch.Generator | None = None) -> Tensor:
    """A crop of the position table for each of `batch` images → B×4 as (x, y, width, height) in [0, 1].

    AM-RADIO's cropped position embedding: scale √0.1 to 1, aspect 3/4 to 4/3, anywhere inside.
    """
    scale, aspect, left, top = torch.rand(4, batch, device=device, generator=generator)
    scale = math.sqrt(0.1) + (1 - math.sqrt(0.1)) * scale
    aspect = torch.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * aspect)
    width, height = (scale * aspect).clamp(0, 1), (scale / aspect).clamp(0, 1)
    return torch.stack([left * (1 - width), top * (1 - height), width, height], dim=1)


class PositionTable(nn.Module):
    """Cropped position embedding: a square table of `cells` × `cells` positions, read at any grid."""

    def __init__(self, cells: int, width: int, dropout: float):
        super().__init__()
        self.cells, self.dropout = cells, dropout
        self.pos_embed = nn.Parameter(torch.randn(1, cells * cells, width) / math.sqrt(width))

    def table(self) -> Tensor:
        """1×D×cells×cells, fp32 whatever the autocast."""
        return rearrange(self.pos_embed, "1 (h w) d -> 1 d h w", h=self.cells).float()

    def forward(self, batch: int, grid: Size) -> Tensor:
        """Positions for `batch` images → B×N×D while training (a crop each), 1×N×D otherwise.

        At the table's own grid there is nothing to crop: RADIO then reads the whole table, in training too.
        """
        if not self.training:
            return self.fixed(grid)
        if grid == (self.cells, self.cells):
            return self._drop(self.fixed(grid).expand(batch, -1, -1))
        return self._drop(self.read(random_position_crop(batch, self.pos_embed.device), grid))

    def read(self, crops: Tensor, grid: Size) -> Tensor:
        """The table at B crops (x, y, width, height) → B×N×D; corners of the grid lie on corners of the crop."""
        h, w = grid
        x, y, width, height = crops.T[..., None]
        columns = x + width * torch.linspace(0, 1, w, device=crops.device)
        rows = y + height * torch.linspace(0, 1, h, device=crops.device)
        lattice = torch.stack([columns[:, None].expand(-1, h, w), rows[:, :, None].expand(-1, h, w)], dim=-1)
        table = self.table().expand(len(crops), -1, -1, -1)
        with torch.autocast(crops.device.type, enabled=False):
            read = F.grid_sample(table, lattice * 2 - 1, mode="bilinear", align_corners=True)
        return rearrange(read, "b d h w -> b (h w) d")

    def fixed(self, grid: Size) -> Tensor:
        """The whole table resized to the longer side, top left kept → 1×N×D: the same for every image."""
        h, w = grid
        table = self.table()
        if max(h, w) != self.cells:
            table = F.interpolate(table, size=(max(h, w),) * 2, mode="bilinear", align_corners=False)
        return rearrange(table[..., :h, :w], "1 d h w -> 1 (h w) d")

    def _drop(self, positions: Tensor) -> Tensor:
        if not self.dropout:
            return positions
        kept = torch.rand(len(positions), 1, 1, device=positions.device) >= self.dropout
        return positions * kept


class LinearEmbedder(nn.Linear):
    """B×3×H×W → B×N×D by one linear layer a patch (flattened channel by channel), as in RADIO."""

    def __init__(self, patch: int, width: int):
        super().__init__(3 * patch**2, width, bias=False)
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        p = self.patch
        return super().forward(rearrange(images, "b c (h y) (w x) -> b (h w) (c y x)", y=p, x=p))


class ConvEmbedder(nn.Module):
    """B×3×H×W → B×N×D by a convolutional stem; its norms see one image, as batches differ in size from step to step."""

    def __init__(self, patch: int, width: int):
        super().__init__()
        self.stem = conv_stem(stem_strides(patch), width, partial(nn.GroupNorm, 1))

    def forward(self, images: Tensor) -> Tensor:
        return rearrange(self.stem(images), "b d h w -> b (h w) d")


EMBEDDERS = {"linear": LinearEmbedder, "conv": ConvEmbedder}


class PatchGenerator(nn.Module):
    """Images → tokens: embedded patches with positions; summary tokens and registers in front."""

    def __init__(self, spec: RadioSpec):
        super().__init__()
        self.patch = spec.patch
        self.embedder = EMBEDDERS[spec.stem](spec.patch, spec.width)
        self.positions = PositionTable(spec.cpe_max // spec.patch, spec.width, spec.position_dropout)
        tokens = len(spec.heads) + spec.registers
        self.tokens = nn.Parameter(torch.randn(tokens, spec.width) / math.sqrt(spec.width))

    def forward(self, images: Tensor) -> Tensor:
        grid = images.shape[2] // self.patch, images.shape[3] // self.patch
        embedded = self.embedder(images)
        embedded = embedded + self.positions(len(images), grid).to(embedded.dtype)
        tokens = self.tokens.to(embedded.dtype).expand(len(images), -1, -1)
        return torch.cat([tokens, embedded], dim=1)


class Head(nn.Module):
    """Backbone tokens …×D → one teacher's width …×C: Linear, residual blocks, Linear (RADIO's MLP version 2)."""

    def __init__(self, width: int, hidden: int, out: int, blocks: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, hidden)) for _ in range(blocks)
        )
        self.final = nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, out))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.fc1(tokens)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.final(hidden).float()

    @property
    def last(self) -> nn.Linear:
        """The layer into which a linear map of the output can be folded."""
        return self.final[-1]


class RadioModel(nn.Module):
    """The student: a ViT backbone with one summary token and two heads a teacher."""

    def __init__(self, spec: RadioSpec):
        super().__init__()
        from timm.models.vision_transformer import Block

        self.spec = spec
        self.input_conditioner = Whiten(spec.mean, spec.std)
        self.patch_generator = PatchGenerator(spec)
        rates = [spec.drop_path * i / max(spec.depth - 1, 1) for i in range(spec.depth)]
        self.blocks = nn.ModuleList(Block(spec.width, spec.num_heads, qkv_bias=True, drop_path=rate) for rate in rates)
        # No last norm: heads begin with a Linear that any scale suits (RADIO leaves it out too).
        self.heads = nn.ModuleDict()
        for name, head in spec.heads.items():
            pair = {"spatial": Head(spec.width, spec.head_hidden, head.spatial, spec.head_blocks)}
            if head.summary is not None:
                pair["summary"] = Head(spec.width, spec.head_hidden, head.summary, spec.head_blocks)
            self.heads[name] = nn.ModuleDict(pair)
        self.apply(_init_linear)

    @property
    def summary_slots(self) -> list[int]:
        """The tokens that a teacher supervises, in order: concatenated they are the backbone's summary."""
        return [i for i, head in enumerate(self.spec.heads.values()) if head.summary is not None]

    @property
    def summary_width(self) -> int:
        return len(self.summary_slots) * self.spec.width

    @property
    def first_patch(self) -> int:
        """Where the patches begin in the token sequence: T + R."""
        return len(self.patch_generator.tokens)

    def tokens(self, images: Tensor) -> Tensor:
        """Images in [0, 1] → all tokens of the last block, B×(T+R+N)×D."""
        x = self.patch_generator(self.input_conditioner(images))
        for block in self.blocks:
            if self.spec.activation_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x

    def forward(self, images: Tensor) -> dict[str, RadioOutput]:
        """Images B×3×H×W in [0, 1] → `backbone` and every head as (summary, features B×C×h×w fp32)."""
        tokens = self.tokens(images)
        grid = images.shape[2] // self.spec.patch, images.shape[3] // self.spec.patch
        patches = tokens[:, self.first_patch :]
        out = {"backbone": RadioOutput(tokens[:, self.summary_slots].flatten(1).float(), as_map(patches.float(), grid))}
        for slot, (name, head) in enumerate(self.heads.items()):
            summary = head["summary"](tokens[:, slot]) if "summary" in head else None
            out[name] = RadioOutput(summary, as_map(head["spatial"](patches), grid))
        return out


def as_map(tokens: Tensor, grid: Size) -> Tensor:
    """B×N×D tokens, row by row → B×D×h×w."""
    return rearrange(tokens, "b (h w) d -> b d h w", h=grid[0])


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
