"""Turns a name into an encoder: the teachers that this project knows, in one plain dict.

A new encoder is a family module (`build` and `locate`, see `random_encoder`) and one entry here.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType

import torch

from teachers.errors import UserError
from teachers.features import Dims, Encoder, Size


@dataclass(frozen=True)
class Entry:
    """What is known of an encoder without building it; None where the user's options decide."""

    about: str
    family: str  # the module in teachers/ that builds it
    options: Mapping[str, object] = field(default_factory=dict)  # given to the family's build, before the user's
    weights: str | None = None  # where its weights are by default: see `weight_files`
    licence: str = "the weights' own"
    size: Size | None = None
    patch: int | None = None
    dims: Dims | None = None
    parameters: int | None = None  # of the image tower


CATALOGUE: dict[str, Entry] = {
    "random": Entry(
        "a seeded random convolutional network, for tests (options patch, width, depth, image_size, seed)",
        family="random_encoder",
        weights="random",
        licence="Apache-2.0",
        size=(224, 224),
        patch=16,
        dims=Dims(64, 64),
        parameters=88064,
    ),
}


def build(
    name: str,
    *,
    weights: str | None = None,
    meta: bool = False,
    device: torch.device | str = "cpu",
    **options: object,
) -> Encoder:
    """The encoder that the catalogue calls `name`.

    Args:
        weights: a file or folder, a published tag, "random" (a seeded initialisation; option `seed`), or None for the
            entry's own.
        meta: build the structure on the meta device: no weights, no memory.
        options: the family's (`image_size`, `dtype`, ...).

    Raises `UserError` for an unknown name or option, and for weights that are not there or not this network's.
    """
    entry = _entry(name)
    family = _family(entry)
    _check_options(name, family, options)
    return family.build(
        name=name,
        licence=entry.licence,
        weights=weights or entry.weights,
        meta=meta,
        device=device,
        **{**entry.options, **options},
    )


def locate(name: str, weights: str | None = None, **options: object) -> str:
    """Where the weights that `build` would load are, as text; raises the `UserError` that `build` would."""
    entry = _entry(name)
    weights = weights or entry.weights
    if weights == "random":
        return "random, from a seed"
    family = _family(entry)
    _check_options(name, family, options)
    return str(family.locate(name=name, weights=weights, **{**entry.options, **options}))


def missing(name: str, weights: str | None = None, **options: object) -> str | None:
    """None where the weights are at hand, else the text that says what is missing and how to get it."""
    try:
        locate(name, weights, **options)
    except UserError as error:
        return str(error)
    return None


def _entry(name: str) -> Entry:
    if name not in CATALOGUE:
        raise UserError(
            f"unknown encoder '{name}'",
            expected="one of " + ", ".join(CATALOGUE),
            todo="python -m teachers   (shows what each one is)",
        )
    return CATALOGUE[name]


def _check_options(name: str, family: ModuleType, options: Mapping[str, object]) -> None:
    known = [key for key in inspect.signature(family.build).parameters if key not in _BUILD_ARGUMENTS]
    for key in options:
        if key not in known:
            raise UserError(f"encoder {name} has no option '{key}'", expected="one of " + ", ".join(known))


_BUILD_ARGUMENTS = ("name", "licence", "weights", "meta", "device")


def _family(entry: Entry) -> ModuleType:
    return importlib.import_module(f"teachers.{entry.family}")
