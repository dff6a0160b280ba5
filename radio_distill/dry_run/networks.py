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


def as_fake(teacher: Teacher, device: torch.device | str) -> Teacher:
    """Inside `fake_tensors`: the same teacher as one of meta, of tensors that have a device.

    A sharpener that has been trained is then read from its files, strictly.
    """
    if teacher.sharp is None:
        return Teacher(teacher.name, teacher.config, materialize(teacher.base, device), None, device)
    sharp, spec = materialize(teacher.sharp, device), teacher.config.sharpen
    if spec not in sharpener.UNTRAINED and not sharpener.missing(spec):
        sharp = sharpener.build(spec, teacher.base, device=device)
    return Teacher(teacher.name, teacher.config, teacher.base, sharp, device)


def planned_sharpener(config: TeacherConfig) -> tuple[SharpenerConfig, Path | None]:
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
def recipes_by_run() -> dict[str, tuple[Path, dict]]:
    """The shipped recipes of sharpeners by their run folder: where each stands, and what it says."""
    found = {}
    for path in sorted(documents.shipped_recipes().rglob("*.yaml")):
        if path.parent.name == "featsharp":
            document = documents.read(path)
            found[document["run"]] = (Path("recipes") / path.relative_to(documents.shipped_recipes()), document)
    return found
