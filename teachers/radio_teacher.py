"""Turns a run or export folder into the student in it (or one of its heads), as an encoder family of the catalogue."""

from __future__ import annotations

from pathlib import Path

import torch

from teachers.errors import UserError
from teachers.features import Encoder
from teachers.frozen import as_size, on_meta
from teachers.radio import RadioModel, RadioSpec
from teachers.radio_encoder import WEIGHTS, RadioEncoder, find_export, read_config
from teachers.weight_files import SHIPPED

TRAINED_BY = {"radio_l": "recipes/radio_l.yaml"}


def build(
    *,
    name: str = "radio",
    licence: str | None = None,
    weights: str | None = None,
    meta: bool = False,
    device: torch.device | str = "cpu",
    config: str | None = None,
    adaptor: str | None = None,
    image_size: int | list[int] | None = None,
    seed: int = 0,
) -> Encoder:
    """The student of the folder `weights` (weights="random": of the folder `config`, untrained, from `seed`).

    Args:
        config: a folder, or shipped:NAME, that describes a student; enough for a plan.
        adaptor: the teacher's name whose head is meant; the backbone without.
        image_size: another native size than the student's.
    """
    described = config is not None and (meta or weights == "random")
    folder = _folder(name, config if described else weights)
    if meta:
        with on_meta(True):
            model = RadioModel(RadioSpec.from_dict(read_config(folder)["spec"]))
        encoder = RadioEncoder(model, read_config(folder), name=name)
    elif weights == "random":
        encoder = RadioEncoder.untrained(folder, seed=seed, device=device)
    else:
        encoder = RadioEncoder.load(folder, device=device)
    if image_size is not None:
        encoder.native_size = as_size(image_size)
    return encoder if adaptor is None else encoder.adaptor(adaptor)


def locate(*, name: str, weights: str | None = None, config: str | None = None, **_: object) -> Path:
    """The weights file that `build` would load; raises its `UserError` where there is none."""
    return _folder(name, weights) / WEIGHTS


def _folder(name: str, folder: str | None) -> Path:
    train = f"deepspeed radio_distill/train.py {TRAINED_BY.get(name, 'recipes/quickstart.yaml')}   (trains one)"
    if folder is None:
        what = f"{name} needs to know which student it is"
        raise UserError(what, expected="weights=FOLDER, of a run or of an export", todo=train)
    if folder.startswith("shipped:"):
        return find_export(SHIPPED / folder.removeprefix("shipped:"))
    if not Path(folder).expanduser().exists():
        raise UserError(f"no such folder: {folder}", expected="a run folder, or an export folder", todo=train)
    return find_export(folder)
