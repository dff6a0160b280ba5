"""A student and its teachers on the same pictures → how far each head is from its teacher, at any size.

All figures are in the teachers' own spaces, so students of different losses and normalisers can be compared. The target
at every size is one and the same: what the teacher says of the whole picture at its own size (sharpened, where that is
asked for), its map brought to the student's grid: bilinear, antialiased where it shrinks.

Shapes: N pictures, D a teacher's width, h w its grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.datasets.split import Split
from eval.feature_cache import View
from eval.resampling import metric, ratio
from eval.scores import MetricScore
from eval.tasks.match import squared_errors
from radio_distill.losses import resize_map
from radio_distill.recipe import TeacherConfig
from radio_distill.targets import Teacher, load_teacher
from teachers.features import Features, Size
from teachers.radio_encoder import RadioEncoder

BATCH = 20  # pictures a forward pass


class Teachers:
    """Teachers by name, and what each says of all pictures of a split: asked once, then kept in memory."""

    def __init__(self, configs: Mapping[str, TeacherConfig], split: Split):
        self.split = split
        self.teachers: dict[str, Teacher] = {name: load_teacher(name, c, "cpu") for name, c in configs.items()}
        self._said: dict[tuple[str, Size], Features] = {}
        self._pictures: dict[Size, Tensor] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.teachers)

    def targets(self, name: str, grid: Size, sharpen: bool) -> Features:
        """Of every picture, beside a student of `grid`: summary N×D_s, map N×D×h×w."""
        teacher = self.teachers[name]
        encoder, size = teacher.encoder(sharpen), teacher.size(grid, sharpen)
        key = (encoder.identity, size)
        if key not in self._said:
            said = [encoder(images) for images in self.pictures(size)]
            summaries = [features.summary for features in said]
            summary = None if summaries[0] is None else torch.cat(summaries)
            self._said[key] = Features(summary, torch.cat([features.spatial for features in said]))
        return self._said[key]

    def pictures(self, size: Size) -> list[Tensor]:
        """The split's pictures at `size` (largest centred box), some at a time, in [0, 1]."""
        if size not in self._pictures:
            view = View(self.split, size, "crop")
            self._pictures[size] = torch.stack([view.image(index) for index in range(self.split.count)])
        return [chunk.float() / 255 for chunk in self._pictures[size].split(BATCH)]


@torch.no_grad()
def match(student: RadioEncoder, teachers: Teachers, size: Size, sharpen: bool, label: str) -> dict[str, MetricScore]:
    """Of every head `KIND NAME LABEL`, all of them errors.

    KIND is `feature error` (squared, as a share of the teacher's variance: 1.0 is the best constant), `feature cosine`
    and `summary cosine` (1 − cosine, mean over cells and pictures).
    """
    grid = student.grid(size)
    targets = {name: teachers.targets(name, grid, sharpen) for name in teachers}
    means = {name: _mean(target.spatial, grid) for name, target in targets.items()}
    rows: dict[str, list[Tensor]] = {}
    for number, images in enumerate(teachers.pictures(size)):
        said = student.everything(images)
        for name, target in targets.items():
            maps, wanted = said[name].spatial.double(), resize_map(target.spatial.split(BATCH)[number], grid).double()
            of_each = {
                "feature error": squared_errors(maps, wanted, means[name]),
                "feature cosine": _cosine(maps, wanted),
            }
            if target.summary is not None:
                summary = target.summary.split(BATCH)[number].double()
                of_each["summary cosine"] = _cosine(said[name].summary.double(), summary)
            for kind, pictures in of_each.items():
                rows.setdefault(f"{kind} {name} {label}", []).append(pictures)
    identity = teachers.split.identity
    return {key: metric(torch.cat(r).numpy(), ratio, identity, direction="lower", unit="") for key, r in rows.items()}


def _cosine(said: Tensor, wanted: Tensor) -> Tensor:
    """Of each picture, vectors in dimension 1: (Σ 1 − cos, how many), N×2."""
    errors = (1 - F.cosine_similarity(said, wanted, dim=1)).reshape(len(said), -1)
    return torch.stack([errors.sum(dim=1), torch.ones_like(errors).sum(dim=1)], dim=1)


def _mean(maps: Tensor, grid: Size) -> Tensor:
    """The mean cell of N×D×h×w at `grid`, 1×D×1×1."""
    chunks = [resize_map(chunk, grid).double().sum(dim=(0, 2, 3)) for chunk in maps.split(BATCH)]
    return (torch.stack(chunks).sum(dim=0) / (len(maps) * grid[0] * grid[1])).view(1, -1, 1, 1)
