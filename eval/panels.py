"""Turns models and a few held-out pictures into panels: each picture beside its features' principal components."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eval.encoders import BACKBONE, Model, device_of, everything, nearest_size
from eval.feature_cache import View
from teachers.features import Encoder, Size
from teachers.pictures import PcaBasis, panel

if TYPE_CHECKING:
    from eval.suite import Suite

FITTED_ON = 24  # pictures that a basis is fitted on
WIDTH = 800  # pixels of a panel, if pictures are then neither tiny nor huge


def panels(suite: Suite, models: Sequence[Model]) -> dict[str, bytes]:
    """`features`: every backbone in a basis of its own; `head NAME`: a teacher and its students in one; as PNG."""
    config = suite.recipe.pictures
    split = suite.split(config.data, "val")
    wanted = None if config.size == "native" else config.size
    count = min(max(FITTED_ON, config.count), split.count)
    shown = [index * count // min(config.count, count) for index in range(min(config.count, count))]
    chosen = [index * split.count // count for index in range(count)]

    def look(encoder: Encoder, size: Size | None) -> dict[str, Tensor]:
        view = View(split, nearest_size(encoder, size), "stretch")
        images = torch.stack([view.image(index) for index in chosen]).to(device_of(encoder)).float().div_(255)
        return {name: features.spatial.cpu() for name, features in everything(encoder, images).items()}

    pictures = [split.image(chosen[index]).float() / 255 for index in shown]
    seen = {model.name: look(model.encoder, wanted) for model in models}  # of repetitions, the last one
    columns = [(name, _colours(PcaBasis.fit([maps[BACKBONE]]), maps[BACKBONE], shown)) for name, maps in seen.items()]
    sheets = {"features": _sheet([("picture", pictures), *columns])}
    for head in dict.fromkeys(name for model in models for name in model.adaptors):
        teacher = next(model.adaptors[head] for model in models if head in model.adaptors).teacher()
        target = look(teacher, None)[BACKBONE]
        basis = PcaBasis.fit([target])
        columns = [("teacher", _colours(basis, target, shown))]
        columns += [(name, _colours(basis, maps[head], shown)) for name, maps in seen.items() if head in maps]
        sheets[f"head {head}"] = _sheet([("picture", pictures), *columns])
    return sheets


def _colours(basis: PcaBasis, maps: Tensor, shown: Sequence[int]) -> list:
    return [basis.to_rgb(maps[index]) for index in shown]


def _sheet(columns: Sequence[tuple[str, list]]) -> bytes:
    rows = [
        [(title if number == 0 else "", cells[number]) for title, cells in columns]
        for number in range(len(columns[0][1]))
    ]
    buffer = io.BytesIO()
    panel(rows, cell=min(max(WIDTH // len(columns), 96), 140)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
