"""Turns models and a few held-out pictures into panels: each picture beside its features' principal components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eval.encoders import BACKBONE, Model, device_of, everything, nearest_size
from eval.feature_cache import View
from eval.report.illustration import Illustration, pictures
from eval.report.sheet import sheet
from teachers.errors import UserError
from teachers.features import Encoder, Size
from teachers.pictures import PcaBasis

if TYPE_CHECKING:
    from eval.suite import Suite

FITTED_ON = 24  # pictures that a basis is fitted on
CELL = 128  # pixels of a picture's longer side
FEATURES = (
    "Held-out pictures, and the first three principal components of each model's feature map as colours. Each model "
    "has a basis of its own: shapes can be compared across columns, colours cannot."
)
HEAD = (
    "In the space of {}: the teacher, and what each student's head makes of the same picture. One basis, the "
    "teacher's: equal colours are equal features."
)


class Gallery:
    """The recipe's held-out pictures, and what encoders make of them."""

    def __init__(self, suite: Suite):
        config = suite.recipe.pictures
        self.split = suite.split(config.data, "val")
        self.size = None if config.size == "native" else config.size
        count = min(max(FITTED_ON, config.count), self.split.count)
        shown = min(config.count, count)
        self.chosen = [index * self.split.count // count for index in range(count)]
        self.shown = [index * count // shown for index in range(shown)]
        self.pictures = [self.split.image(self.chosen[index]).permute(1, 2, 0).numpy() for index in self.shown]

    def maps(self, encoder: Encoder, size: Size | None) -> dict[str, Tensor]:
        """Output → maps B×D×h×w of all chosen pictures; raises `UserError` for a size that `encoder` cannot take."""
        view = View(self.split, nearest_size(encoder, size), "stretch")
        images = torch.stack([view.image(index) for index in self.chosen]).to(device_of(encoder)).float().div_(255)
        return {name: features.spatial.cpu() for name, features in everything(encoder, images).items()}

    def colours(self, basis: PcaBasis, maps: Tensor) -> list:
        return [basis.to_rgb(maps[index]) for index in self.shown]

    def page(self, name: str, columns: Sequence[tuple[str, list]], caption: str) -> Illustration:
        alt = f"principal components of feature maps: {', '.join(title for title, _ in columns)}"
        return pictures(name, sheet([("picture", self.pictures), *columns], CELL), caption, alt)


def panels(suite: Suite, models: Sequence[Model]) -> list[Illustration]:
    """`features`: every backbone in a basis of its own; `head NAME`: a teacher and its students in one.

    The caption of `features` says what is not shown (a model that cannot take the size, a teacher that is not there).
    """
    gallery = Gallery(suite)
    seen: dict[str, dict[str, Tensor]] = {}  # of repetitions, the first one; without what cannot take the size
    lacking: dict[str, UserError] = {}  # what is not shown → why
    for model in models:
        try:
            if model.name not in seen:
                seen[model.name] = gallery.maps(model.encoder, gallery.size)
        except UserError as error:
            lacking[model.name] = error
    heads = []
    for head in dict.fromkeys(name for maps in seen.values() for name in maps if name != BACKBONE):
        try:
            heads.append(_head(gallery, head, models, seen))
        except UserError as error:
            lacking[f"head {head}"] = error
    for name, error in lacking.items():
        suite.say(f"no PCA panel of {name}: {error}")
    own = [(name, gallery.colours(PcaBasis.fit([maps[BACKBONE]]), maps[BACKBONE])) for name, maps in seen.items()]
    caption = " ".join([FEATURES, *(f"Not shown: {name} ({error.what})." for name, error in lacking.items())])
    return [gallery.page("features", own, caption), *heads] if own else []


def _head(gallery: Gallery, head: str, models: Sequence[Model], seen: dict[str, dict[str, Tensor]]) -> Illustration:
    """A teacher and its students; `UserError` where the teacher cannot be loaded, or shown the pictures."""
    teacher = next(model.adaptors[head] for model in models if head in model.adaptors).teacher()
    target = gallery.maps(teacher, None)[BACKBONE]
    basis = PcaBasis.fit([target])
    columns = [("teacher", gallery.colours(basis, target))]
    columns += [(name, gallery.colours(basis, maps[head])) for name, maps in seen.items() if head in maps]
    return gallery.page(f"head {head}", columns, HEAD.format(head))
