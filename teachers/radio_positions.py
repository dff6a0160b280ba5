"""A square table of learned positions → positions for any grid: random crops of it in training, the whole otherwise.

Shapes: B images, h w grid, N = h·w patches, D width. AM-RADIO (arXiv 2312.06709), cropped position embedding.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from teachers.errors import UserError
from teachers.features import Size


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

    def forward(self, batch: int, grid: Size, frames: int = 1) -> Tensor:
        """Positions for `batch` images → B×N×D while training (a crop a clip), 1×N×D otherwise.

        At the table's own grid there is nothing to crop: RADIO then reads the whole table, in training too.

        Args:
            frames: images are clips of this many, one after the other; those of a clip share crop and dropout.
        """
        if not self.training:
            return self.fixed(grid)
        if frames < 1 or batch % frames:
            raise UserError(f"{batch} images are no clips of {frames} frames", expected="a multiple of the frames")
        clips = batch // frames
        if grid == (self.cells, self.cells):
            positions = self.fixed(grid).expand(clips, -1, -1)
        else:
            positions = self.read(random_position_crop(clips, self.pos_embed.device), grid)
        positions = self._drop(positions)
        return positions if frames == 1 else positions.repeat_interleave(frames, 0)

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


def resample_table(table: Tensor, cells: int) -> Tensor:
    """Positions of another table, 1×(G·G)×D → 1×(cells·cells)×D: bicubic, corners on corners, as RADIO loads them."""
    side = math.isqrt(table.shape[1])
    assert side * side == table.shape[1], "a table of positions is square"
    if side == cells:
        return table
    square = rearrange(table.float(), "1 (h w) d -> 1 d h w", h=side)
    read = F.interpolate(square, size=(cells, cells), mode="bicubic", align_corners=True)
    return rearrange(read, "1 d h w -> 1 (h w) d").to(table.dtype)
