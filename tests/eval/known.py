"""An encoder that knows pictures by heart: what it answers to each is laid down, so that tasks have known answers."""

from __future__ import annotations

import torch
from torch import Tensor

from eval.datasets.split import Split
from teachers.features import Dims, Encoder, Features, identity_of


class Known(Encoder):
    """Answers picture i of `split` with maps[i], D×h×w; pictures must all differ."""

    def __init__(self, split: Split, maps: list[Tensor], name: str = "known"):
        super().__init__()
        height, width = split.shape
        self.name, self.identity = name, identity_of({str(i): m for i, m in enumerate(maps)}, split.identity)
        self.patch_size, self.native_size, self.resolution_flexible = height // maps[0].shape[1], (height, width), False
        self.dims, self.licence = Dims(None, len(maps[0])), "none"
        assert maps[0].shape[2] * self.patch_size == width
        self.known = {split.image(i).numpy().tobytes(): maps[i].float() for i in range(split.count)}
        assert len(self.known) == split.count

    def forward(self, images: Tensor) -> Features:
        self.check(images)
        pictures = (images * 255).round().to(torch.uint8)
        return Features(None, torch.stack([self.known[picture.numpy().tobytes()] for picture in pictures]))
