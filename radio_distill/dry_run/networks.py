"""A recipe's teachers and sharpeners → the same networks without weights: on meta, or fake inside `fake_tensors`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from featsharp import adapter as adapters
from featsharp import sharpener
from featsharp.config import SharpenerConfig
from radio_distill import documents
from radio_distill.dry_run.fake import materialize
from radio_distill.recipe import TeacherConfig
from radio_distill.targets import Teacher
from teachers.catalogue import build
from teachers.features import Encoder


def encoder_on_meta(name: str, config: TeacherConfig) -> Encoder:
    """A teacher's encoder without weights and memory; `UserError` where its entry in the recipe is wrong."""
    encoder = build(config.encoder, weights=config.weights, meta=True, device="meta", **config.options)
    encoder.name = name
    encoder.identity  # noqa: B018 (kept from now on; tensors without values could not be hashed)
    return encoder


def fake_teacher(name: str, config: TeacherConfig, base: Encoder, device: torch.device | str) -> Teacher:
    """Inside `fake_tensors`, what `load_teacher` gives outside: around an encoder of the meta device.

    A sharpener that has been trained is read from its files, strictly; of one that has not, see `planned_sharpener`.
    """
    materialize(base, device)
    return Teacher(name, config, base, _sharpened(base, config, device), device)


def _sharpened(base: Encoder, config: TeacherConfig, device: torch.device | str) -> sharpener.Sharpener | None:
    if config.sharpen == "none":
        return None
    if config.sharpen in sharpener.UNTRAINED or not sharpener.missing(config.sharpen):
        return sharpener.build(config.sharpen, base, factor=config.factor, device=device)
    return sharpener.Sharpener(base, planned_sharpener(config)[0]).to(device)


def planned_sharpener(config: TeacherConfig) -> tuple[SharpenerConfig, str | None]:
    """The sharpener that a teacher will have, and the recipe that makes it.

    One that has been trained knows itself; else a shipped recipe whose run folder the teacher names; else the defaults.
    """
    if config.sharpen in sharpener.UNTRAINED:
        return SharpenerConfig(upsampler=config.sharpen, factor=config.factor, bias=False), None
    if not sharpener.missing(config.sharpen):
        return adapters.read_settings(sharpener.find(config.sharpen)), None
    made = recipes_by_run().get(config.sharpen)
    if made is None:
        return SharpenerConfig(factor=config.factor), None
    path, document = made
    return SharpenerConfig.model_validate(document["sharpener"]), path


@cache
def recipes_by_run() -> dict[str, tuple[str, dict]]:
    """The shipped recipes of sharpeners by their run folder: where each stands, and what it says."""
    found = {}
    for path in sorted(documents.shipped_recipes().rglob("*.yaml")):
        if path.parent.name == "featsharp":
            document = documents.read(path)
            found[document["run"]] = (str(Path("recipes") / path.relative_to(documents.shipped_recipes())), document)
    return found
