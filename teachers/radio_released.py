"""A student → RADIO's released layouts: the hub's checkpoint (`args`, `state_dict`) and the Hugging Face folder.

What the public hub entry takes was found by running it: a plain timm ViT with a linear patch embedding, summary heads
of both MLP versions, feature heads of version 2 or with attention. Everything else is refused here by the name of the
recipe's key that decides it.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.radio import RadioModel
from teachers.radio_encoder import RadioEncoder
from teachers.radio_files import CARD, CONFIG, FORMAT, OURS, WEIGHTS, to_folder_names
from teachers.radio_layout import to_hub
from teachers.radio_spec import MlpSpec, RadioSpec

# timm's names of plain ViTs by (width, depth, heads); any other size is said by overrides of one of them.
TIMM_NAMES = {
    (192, 12, 3): ("vit_tiny_patch16_224", 16),
    (384, 12, 6): ("vit_small_patch16_224", 16),
    (768, 12, 12): ("vit_base_patch16_224", 16),
    (1024, 24, 16): ("vit_large_patch16_224", 16),
    (1280, 32, 16): ("vit_huge_patch14_224", 14),
}
OTHER_SIZE = ("vit_base_patch16_224", 16)
EMPTY_HEAD = MlpSpec(hidden=1)
SHALLOWEST_WINDOWED = 8  # the public entry has 4 global blocks, and a windowed one before each


def hub_args(spec: RadioSpec) -> dict[str, Any]:
    """The `args` with which the public hub entry builds `spec`; `UserError` for what it cannot build."""
    _refuse(spec)
    size = (spec.width, spec.depth, spec.num_heads)
    name, patch = TIMM_NAMES.get(size, OTHER_SIZE)
    kwargs: dict[str, Any] = {}
    if size not in TIMM_NAMES:
        kwargs.update(embed_dim=spec.width, depth=spec.depth, num_heads=spec.num_heads)
    if spec.patch != patch:
        kwargs["patch_size"] = spec.patch
    if spec.mlp_ratio != 4:
        kwargs["mlp_ratio"] = (round(spec.width * spec.mlp_ratio) + 0.5) / spec.width  # timm cuts the fraction off
    return {
        "model": name, "pretrained": False, "in_chans": 3, "input_size": None, "num_classes": None, "drop": 0.0,
        "drop_path": None, "drop_block": None, "gp": None, "bn_momentum": None, "bn_eps": None, "torchscript": False,
        "initial_checkpoint": "", "model_kwargs": kwargs, "cpe_max_size": spec.cpe_max,
        "cls_token_per_teacher": spec.token_per_teacher, "register_multiple": None,
        "cpe_num_registers": spec.registers, "mlp_version": "v2", "spatial_mlp_version": None,
        "spectral_reparam": False, "spectral_heads": False, "damp": None, "model_norm": spec.final_norm,
        "teachers": [_teacher(spec, name) for name in spec.heads], "dtype": torch.float32,
    }  # fmt: skip


def _teacher(spec: RadioSpec, name: str) -> dict[str, Any]:
    head = spec.heads[name]
    entry = {
        "name": name,
        "type": "generic",
        "use_summary": head.supervised and head.summary is not None,
        "mlp_version": (head.summary_mlp or EMPTY_HEAD).version,
        "spatial_mlp_version": {"attention": "attn"}.get(head.spatial_mlp.version, head.spatial_mlp.version),
    }
    if head.token is not None:
        entry["token_slot"] = head.token
    if head.up != 1:
        entry["fd_upsample_factor"] = head.up
    return entry


def _refuse(spec: RadioSpec) -> None:
    """Raise `UserError` for what the public entry cannot build, or would load wrongly."""
    trunk = {
        "student.stem": (spec.stem == "linear", spec.stem, "linear"),
        "student.patch_bias": (not spec.patch_bias, "true", "false"),
        "student.mlp": (spec.mlp == "gelu", spec.mlp, "gelu"),
        "student.layer_scale": (spec.layer_scale is None, spec.layer_scale, "null"),
    }
    for key, (fine, is_now, wanted) in trunk.items():
        if not fine:
            raise _no(f"a trunk with {key}={is_now}", f"{key}={wanted}")
    for name, head in spec.heads.items():
        if head.spatial_mlp.version == "v1":
            wanted = f"teachers.{name}.head.features=v2 (or student.heads.features)"
            raise _no(f"the feature head of {name}, an MLP v1", wanted)
        if "." in name:
            raise _no(f"a teacher's name with a dot, {name}", f"teachers: another name than {name}")
        if name.isdigit():
            raise _no(f"a teacher's name that reads as a number, {name}", f"teachers: another name than {name}")
        # Its heads are found by the bare beginning of their keys, so `sam` would find those of `sam3` too.
        longer = [other for other in spec.heads if other != name and other.startswith(name)]
        if longer:
            raise _no(
                f"two teachers of which one's name begins with the other's, {name} and {longer[0]}",
                f"teachers: another name than {longer[0]}",
            )


def _no(what: str, key: str) -> UserError:
    return UserError(
        f"the public RADIO hub cannot load {what}",
        expected=f"a student trained with {key}",
        todo="--format hf, onnx or safetensors keeps it as it is",
    )


# Writing ----------------------------------------------------------------------------------------------------------


def hub_checkpoint(model: RadioModel, config: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The dict that the public hub entry loads: plain weights in fp32, heads in their teachers' own spaces.

    A teacher without a summary head gets an empty one, as the entry looks for one of every teacher; our reader takes
    it out again. What `args` has no place for stands under a key that only our reader knows.
    """
    spec, weights = _plain(model)
    args = hub_args(spec)
    state = {key: tensor.detach().cpu().float().contiguous() for key, tensor in to_hub(spec, weights).items()}
    headless = [name for name, head in spec.heads.items() if head.summary is None]
    for name in headless:
        state.update(_empty_head(name, spec.width))
    windows = {"global_blocks": spec.global_blocks, "windowed_blocks": spec.windowed_blocks}
    kept = {key: config[key] for key in ("licence", "preferred_size", "teachers")}
    return {
        "args": argparse.Namespace(**args),
        "state_dict": state,
        "arch": args["model"],
        "epoch": step,
        OURS: {"config": kept, "without_summary": headless, "spec": windows},
    }


def hub_limits(spec: RadioSpec) -> list[str]:
    """What the public entry does less with `spec` than this project does."""
    attentive = [name for name, head in spec.heads.items() if head.spatial_mlp.version == "attention"]
    limits = []
    if attentive:
        limits.append(f"there the features of {', '.join(attentive)} come with feature_fmt='NLC' only")
    if spec.depth < SHALLOWEST_WINDOWED:
        limits.append(f"there its windowed mode needs {SHALLOWEST_WINDOWED} blocks, and this has {spec.depth}")
    return limits


def _plain(model: RadioModel) -> tuple[RadioSpec, dict[str, Tensor]]:
    """The baked student, with its input conditioner also where that was made external."""
    spec, weights = model.baked()
    for key, value in {"mean": spec.mean, "std": spec.std}.items():
        weights.setdefault(f"input_conditioner.{key}", torch.tensor(value).view(3, 1, 1))
    return spec, weights


def _empty_head(name: str, width: int) -> dict[str, Tensor]:
    """A summary head of version 2 that answers 0."""
    hidden = EMPTY_HEAD.hidden
    shapes = {
        "fc1.weight": (hidden, width), "fc1.bias": (hidden,), "final.0.weight": (hidden,), "final.0.bias": (hidden,),
        "final.2.weight": (1, hidden), "final.2.bias": (1,),
    }  # fmt: skip
    return {f"_heads.{name}.{key}": torch.zeros(shape) for key, shape in shapes.items()}


def write_checkpoint(checkpoint: Mapping[str, Any], file: Path) -> None:
    """Write a hub checkpoint to `file`, whole or not at all."""
    temporary = file.with_name(f".{file.name}.tmp")
    torch.save(dict(checkpoint), temporary)
    os.replace(temporary, file)


def folder_config(spec: RadioSpec, encoder: RadioEncoder, adaptor_names: tuple[str, ...] = ()) -> dict[str, Any]:
    """config.json of a Hugging Face folder: RADIO's fields, and ours, which are the ones that are read back."""
    try:
        args = {key: str(value) if key == "dtype" else value for key, value in hub_args(spec).items()}
    except UserError:
        args = None  # the hub has no words for this student; ours below do
    return {
        **encoder.config,
        "format": FORMAT,
        "spec": spec.as_dict(),
        "version": encoder.name,
        "args": args,
        "patch_size": spec.patch,
        "max_resolution": spec.cpe_max,
        "preferred_resolution": list(encoder.native_size),
        "adaptor_names": list(adaptor_names),
        "adaptor_configs": {name: _adaptor_config(spec, name) for name in spec.heads},
    }


def _adaptor_config(spec: RadioSpec, name: str) -> dict[str, Any]:
    head = spec.heads[name]

    def sizes(mlp: MlpSpec, out: int) -> dict[str, int]:
        return {"input_dim": spec.width, "hidden_dim": mlp.hidden, "output_dim": out, "num_inner": mlp.blocks}

    config = {"head_idx": spec.token_of[name], "feature": sizes(head.spatial_mlp, head.spatial)}
    if head.up != 1:
        config["feature"]["upsample_factor"] = head.up
    if head.summary is not None:
        config["summary"] = sizes(head.summary_mlp, head.summary)
    return config


def write_folder(folder: Path, encoder: RadioEncoder, adaptor_names: tuple[str, ...] = ()) -> None:
    """A Hugging Face folder: config.json, model.safetensors under RADIO's names, and the student's card, if any."""
    from safetensors.torch import save_file

    spec, weights = _plain(encoder.model)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in to_folder_names(to_hub(spec, weights)).items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(folder_config(spec, encoder, adaptor_names), indent=2) + "\n")
    if encoder.card is not None:
        (folder / CARD).write_text(encoder.card)
