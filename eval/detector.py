"""One frozen feature map → boxes, classes and scores: torchvision's FCOS head on a small feature pyramid.

The pyramid is ViTDet's simple one (Li et al. 2022, "Exploring Plain Vision Transformer Backbones for Object
Detection"): every level is made from the one map, finer ones by transposed convolution, coarser ones by pooling.

Shapes: B pictures, D width of the features, C of the detector, h w grid of the map. Sizes: pixels of the model's input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.fcos import FCOS, FCOSHead

from teachers.features import Size

DOUBLINGS = 2  # of the map's grid, at most: ViTDet's finest level has four times its map's
GROUPS = 32  # of FCOS's group norm: the width must be a multiple
SCORE, OVERLAP, CANDIDATES, KEPT = 0.1, 0.6, 300, 100  # below it nothing is kept; NMS; a level's before it; a picture's


class Pyramid(nn.Module):
    """B×D×h×w → `levels` maps, each B×C with half the grid of the one before.

    Args:
        doublings: the first has 2^doublings times the map's grid.
    """

    def __init__(self, width: int, hidden: int, levels: int, doublings: int):
        super().__init__()
        self.out_channels = hidden
        self.enter = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, hidden, 1))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(hidden, hidden, 2, stride=2) for _ in range(doublings))
        self.leave = nn.ModuleList(
            nn.Sequential(nn.Conv2d(hidden, hidden, 3, padding=1), nn.GroupNorm(GROUPS, hidden)) for _ in range(levels)
        )

    def forward(self, maps: Tensor) -> list[Tensor]:
        levels = [self.enter(maps)]
        for enlarge in self.enlarge:
            levels.insert(0, enlarge(levels[0]))
        while len(levels) < len(self.leave):
            levels.append(F.max_pool2d(levels[-1], 2, ceil_mode=True))
        return [leave(level) for leave, level in zip(self.leave, levels)]


class Detector(FCOS):
    """Maps B×D×h×w → what FCOS's head says of every cell of every level; `loss` and `detect` read it.

    Args:
        grid: h, w.
        size: of the model's input, that the grid covers; decides strides, and so which level finds which sizes.
        convs: convolutions of each of the head's two towers.
        cells: the map's grid is doubled (twice at most) until its longer side has as many. So a map that is coarse
            and one that was sharpened are looked at in the same strides, and differ in what they know.
    """

    def __init__(
        self, width: int, grid: Size, size: Size, classes: int, *, hidden: int, convs: int, levels: int, cells: int
    ):
        doublings = next((n for n in range(DOUBLINGS) if max(grid) * 2**n >= cells), DOUBLINGS)
        super().__init__(
            Pyramid(width, hidden, levels, doublings), classes, head=FCOSHead(hidden, 1, classes, convs),
            score_thresh=SCORE, nms_thresh=OVERLAP, topk_candidates=CANDIDATES, detections_per_img=KEPT,
        )  # fmt: skip
        # The distances go through a ReLU: where they begin at zero, half of them would have no gradient to leave it.
        nn.init.ones_(self.head.regression_head.bbox_reg.bias)
        self.size = size
        stride = size[0] / grid[0], size[1] / grid[1]
        self.strides = [tuple(side * 2.0 ** (level - doublings) for side in stride) for level in range(levels)]
        grids = [grid_at(grid, level - doublings) for level in range(levels)]
        self.cells = [h * w for h, w in grids]
        anchors = [cell_boxes(own, stride) for own, stride in zip(grids, self.strides)]
        self.register_buffer("anchors", torch.cat(anchors), persistent=False)

    def forward(self, maps: Tensor) -> dict[str, Tensor]:
        return self.head(self.backbone(maps))

    def loss(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        """FCOS's three terms, added; a target has `boxes` n×4 in pixels of the model's input and `labels` n."""
        return sum(self.compute_loss(targets, outputs, [self.anchors] * len(targets), self.cells).values())

    @torch.no_grad()
    def detect(self, maps: Tensor) -> list[dict[str, Tensor]]:
        """Of each picture: `boxes` n×4 in pixels of the model's input, `labels` n and `scores` n, best first."""
        outputs = {name: list(values.split(self.cells, dim=1)) for name, values in self(maps).items()}
        anchors = [list(self.anchors.split(self.cells))] * len(maps)
        return self.postprocess_detections(outputs, anchors, [self.size] * len(maps))


def grid_at(grid: Size, halvings: int) -> Size:
    """The map's grid halved so many times, each time rounded up; below 0, doubled."""
    if halvings < 0:
        return grid[0] * 2**-halvings, grid[1] * 2**-halvings
    for _ in range(halvings):
        grid = -(-grid[0] // 2), -(-grid[1] // 2)
    return grid


def cell_boxes(grid: Size, stride: tuple[float, float]) -> Tensor:
    """FCOS's anchors: the box of each cell, hw×4.

    torchvision's generator has them in whole pixels around the cells' corners, half a cell off; where sixteen cells
    cover a picture that is much.
    """
    y, x = torch.meshgrid(*(torch.arange(cells) * side for cells, side in zip(grid, stride)), indexing="ij")
    return torch.stack([x, y, x + stride[1], y + stride[0]], dim=-1).reshape(-1, 4).float()
