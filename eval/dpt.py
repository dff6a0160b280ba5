"""One frozen map B×D×h×w → C outputs on a finer grid: the DPT head that depth and normals are read out with.

Ranftl et al. 2021 (DPT) reassemble four layers of a ViT at four scales and fuse them from coarse to fine. Here all
four levels are made of the encoder's last map, as in ViTDet's simple feature pyramid (Li et al. 2022): a sharpened
teacher has no layers in between, and one head must serve every model.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from eval.probes import LABELS, Cells, ProbeSettings, linear_head

LEVELS = 4


class DptSettings(ProbeSettings):
    """A head and its training; the defaults are Probe3D's, with the steps of ten epochs of NYUDv2's 795 pictures."""

    head: Literal["dpt", "linear"] = Field("dpt", description="dpt, or batch norm and a 1×1 convolution")
    hidden: Annotated[int, Field(ge=1)] = Field(512, description="width of the dpt head")
    finest: Literal[1, 2, 4] = Field(4, description="finest grid of the dpt head, times the map's")
    steps: Annotated[int, Field(ge=1)] = Field(1000, description="of training")
    batch: Annotated[int, Field(ge=1)] = Field(8, description="pictures a step")
    lr: Annotated[float, Field(gt=0)] = Field(5e-4, description="peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="of the probe")
    labels: Cells = Field(112, description=LABELS)
    warmup: Annotated[float, Field(ge=0, le=1)] = Field(0.15, description="share of the steps; the rate rises in it")


HEADS = (  # of a protocol
    "The head, dpt: BatchNorm(D); four levels, each a 1×1 convolution of the same last map to the hidden width and a "
    "(transposed) convolution to 1, ½, ¼ and ⅛ of the finest grid; fused from coarse to fine by bilinear enlargement, "
    "addition and residual units of two 3×3 convolutions; a 3×3 and a 1×1 convolution. (Probe3D taps four layers of "
    "the backbone; a sharpened teacher has only its last map, so every model is read from that.) The head, linear: "
    "BatchNorm(D) and a 1×1 convolution. "
)


def build_head(width: int, outputs: int, settings: DptSettings) -> nn.Module:
    """The head that `settings` ask for, B×D×h×w → B×C×h'×w'."""
    if settings.head == "linear":
        return linear_head(width, outputs)
    return Dpt(width, outputs, settings.hidden, settings.finest)


class Dpt(nn.Module):
    """B×D×h×w → B×C×(finest·h)×(finest·w); any h, w ≥ 1.

    Args:
        hidden: width of every level.
        finest: 1, 2 or 4: scale of the finest level; the others are ½, ¼ and ⅛ of it.
    """

    def __init__(self, width: int, outputs: int, hidden: int = 512, finest: int = 4):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)  # maps of different models differ in scale by orders of magnitude
        self.levels = nn.ModuleList(_level(width, hidden, finest, halved) for halved in range(LEVELS))
        self.skips = nn.ModuleList(ResidualUnit(hidden) for _ in range(LEVELS - 1))
        self.fusions = nn.ModuleList(ResidualUnit(hidden) for _ in range(LEVELS))
        self.out = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(hidden, outputs, 1)
        )

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.norm(maps)
        *finer, coarsest = [level(maps) for level in self.levels]
        fused = self.fusions[-1](coarsest)
        for level, skip, fusion in reversed(list(zip(finer, self.skips, self.fusions))):
            # To the level's own size: halving rounds up, so odd sizes are not half of each other.
            enlarged = F.interpolate(fused, level.shape[2:], mode="bilinear", align_corners=False)
            fused = fusion(enlarged + skip(level))
        return self.out(fused)


class ResidualUnit(nn.Module):
    """x + two 3×3 convolutions of it, each after a ReLU; B×C×h×w → the same."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def _level(width: int, hidden: int, finest: int, halved: int) -> nn.Module:
    """B×D×h×w → B×hidden at finest / 2^halved times the grid, rounded up."""
    layers: list[nn.Module] = [nn.Conv2d(width, hidden, 1)]
    while finest > 1 and halved:
        finest, halved = finest // 2, halved - 1
    if finest > 1:
        layers.append(nn.ConvTranspose2d(hidden, hidden, finest, stride=finest))
    layers += [nn.Conv2d(hidden, hidden, 3, stride=2, padding=1) for _ in range(halved)]
    return nn.Sequential(*layers)
