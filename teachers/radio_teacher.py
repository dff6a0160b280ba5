"""Turns a student's files (a run, an export, a released RADIO) into it or one of its heads: an encoder family."""

from __future__ import annotations

from pathlib import Path

import torch

from teachers.errors import UserError
from teachers.features import Encoder
from teachers.frozen import as_size, on_meta
from teachers.radio import RadioModel
from teachers.radio_encoder import RadioEncoder
from teachers.radio_files import WHAT, find_student, read_spec, weights_file
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
    """The student at `weights` (weights="random": the one that `config` describes, untrained, from `seed`).

    Args:
        weights: a run, export or Hugging Face folder, or a checkpoint file in the layout of the public RADIO hub.
        config: a folder, or shipped:NAME, that describes a student; enough for a plan.
        adaptor: the teacher's name whose head is meant; the backbone without.
        image_size: another native size than the student's.
    """
    described = config is not None and (meta or weights == "random")
    place = _place(name, config if described else weights)
    if meta:
        spec, about = read_spec(place)
        with on_meta(True):
            encoder = RadioEncoder(RadioModel(spec), about, name=name)
    elif weights == "random":
        encoder = RadioEncoder.untrained(place, seed=seed, device=device)
    else:
        encoder = RadioEncoder.load(place, device=device)
    if image_size is not None:
        encoder.native_size = as_size(image_size)
    return encoder if adaptor is None else encoder.adaptor(adaptor)


def locate(*, name: str, weights: str | None = None, config: str | None = None, **_: object) -> Path:
    """The weights file that `build` would load; raises its `UserError` where there is none."""
    return weights_file(_place(name, weights))


def _place(name: str, path: str | None) -> Path:
    train = f"deepspeed radio_distill/train.py {TRAINED_BY.get(name, 'recipes/quickstart.yaml')}   (trains one)"
    known = f"weights=PATH: {WHAT}"
    if path is None:
        raise UserError(f"{name} needs to know which student it is", expected=known, todo=train)
    if path.startswith("shipped:"):
        return find_student(SHIPPED / path.removeprefix("shipped:"))
    if not Path(path).expanduser().exists():
        raise UserError(f"no such file or folder: {path}", expected=known, todo=train)
    return find_student(path)
