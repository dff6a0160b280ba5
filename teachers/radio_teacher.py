"""Turns a run or export folder into the student in it (or one of its heads), as an encoder family of the catalogue."""

from __future__ import annotations

from pathlib import Path

import torch

from teachers.errors import UserError
from teachers.features import Encoder
from teachers.frozen import on_meta
from teachers.radio import RadioModel, RadioSpec
from teachers.radio_encoder import WEIGHTS, RadioEncoder, find_export, read_config


def build(
    *,
    name: str = "radio",
    licence: str | None = None,
    weights: str | None = None,
    meta: bool = False,
    device: torch.device | str = "cpu",
    config: str | None = None,
    adaptor: str | None = None,
    seed: int = 0,
) -> Encoder:
    """The student of the folder `weights` (weights="random": of the folder `config`, untrained, from `seed`).

    Args:
        adaptor: the teacher's name whose head is meant; the backbone without.
    """
    folder = _folder(name, config if weights in (None, "random") else weights)
    if meta:
        with on_meta(True):
            model = RadioModel(RadioSpec.from_dict(read_config(folder)["spec"]))
        encoder = RadioEncoder(model, read_config(folder), name=name)
    elif weights == "random":
        encoder = RadioEncoder.untrained(folder, seed=seed, device=device)
    else:
        encoder = RadioEncoder.load(folder, device=device)
    return encoder if adaptor is None else encoder.adaptor(adaptor)


def locate(*, name: str, weights: str | None = None, config: str | None = None, **_: object) -> Path:
    """The weights file that `build` would load; raises its `UserError` where there is none."""
    return _folder(name, weights or config) / WEIGHTS


def _folder(name: str, folder: str | None) -> Path:
    if folder is None:
        raise UserError(
            f"{name} needs to know which student it is",
            expected="weights=FOLDER, of a run or of an export",
            todo="deepspeed radio_distill/train.py recipes/quickstart.yaml   (trains one)",
        )
    return find_export(folder)
