"""Turns a name into an encoder: the teachers that this project knows, in one plain dict.

A new encoder is a family module (`build` and `locate`, see `random_encoder`) and one entry in `teachers/entries.py`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from teachers.entries import ALIASES, CATALOGUE, Entry
from teachers.errors import UserError
from teachers.features import Encoder


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
    entry = _checked(name, weights, options)
    return _family(entry).build(
        name=name,
        licence=entry.licence,
        weights=weights or entry.weights,
        meta=meta,
        device=device,
        **{**entry.options, **options},
    )


def locate(name: str, weights: str | None = None, **options: object) -> str:
    """Where the weights that `build` would load are, as text; raises the `UserError` that `build` would."""
    entry = _checked(name, weights, options)
    weights = weights or entry.weights
    if weights == "random":
        return "random, from a seed"
    return str(_family(entry).locate(name=name, weights=weights, **{**entry.options, **options}))


def missing(name: str, weights: str | None = None, **options: object) -> str | None:
    """None where the weights are at hand, else the text that says what is missing and how to get it."""
    try:
        locate(name, weights, **options)
    except UserError as error:
        return str(error)
    return None


def entry_of(name: str) -> Entry:
    """The entry of a name of the catalogue, or of another name for one; `UserError` lists the names."""
    _refuse_naflex(name, name)
    if name in ALIASES:
        known, options = ALIASES[name]
        about = " ".join([f"another name for {known}", *(f"{key}={value}" for key, value in options.items())])
        return replace(CATALOGUE[known], about=about, options={**CATALOGUE[known].options, **options})
    if name not in CATALOGUE:
        raise UserError(
            f"unknown encoder '{name}'",
            expected="one of " + ", ".join([*CATALOGUE, *ALIASES]),
            todo="python -m teachers   (shows what each one is)",
        )
    return CATALOGUE[name]


def network_of(name: str, options: Mapping[str, object]) -> tuple[str, dict[str, object]]:
    """The family and the options that decide which network a name builds; two names of one network give the same."""
    entry = entry_of(name)
    all_options = {**entry.options, **options}
    return entry.family, {key: value for key, value in all_options.items() if key not in ("dtype", "seed")}


def entry_options(name: str) -> dict[str, inspect.Parameter]:
    """The options that `build(name, ...)` takes besides weights, meta and device."""
    parameters = inspect.signature(_family(entry_of(name)).build).parameters
    return {key: parameter for key, parameter in parameters.items() if key not in _BUILD_ARGUMENTS}


def _checked(name: str, weights: str | None, options: Mapping[str, object]) -> Entry:
    """The entry of `name`, which takes these options."""
    entry, known = entry_of(name), entry_options(name)
    for key in options:
        if key not in known:
            raise UserError(f"encoder {name} has no option '{key}'", expected="one of " + ", ".join(known))
    for what in (options.get("model"), weights):
        _refuse_naflex(name, what)
    return entry


def _refuse_naflex(name: str, what: object) -> None:
    if isinstance(what, str) and "naflex" in what.lower() and not Path(what).exists():
        raise UserError(
            f"{name}: NaFlex checkpoints are not taken ('{what}'): they read sequences of patches, not images",
            expected="a checkpoint of one resolution: siglip2 (512 px), siglip2_378, siglip2_g (384 px), ...",
        )


_BUILD_ARGUMENTS = ("name", "licence", "weights", "meta", "device")


def _family(entry: Entry) -> ModuleType:
    return importlib.import_module(f"teachers.{entry.family}")
