"""Files on disk → what a student is made of: its description, its weights by our names, and who taught it.

Three layouts are read: ours (config.json and model.safetensors, as a run's export has them), a Hugging Face folder (the
same two files, the weights under RADIO's names there), and a checkpoint file of the public RADIO hub (`.pth.tar`).
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.radio_layout import from_hub, spec_from_checkpoint
from teachers.radio_spec import RadioSpec
from teachers.weight_files import read_tensors
from teachers.written_folders import says

FORMAT = "radio-distill/1"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
CHECKPOINTS = (".pth.tar", ".pth", ".pt")
WHAT = "a run folder, an export or Hugging Face folder, or a RADIO checkpoint (a file *.pth.tar)"
OURS = "radio_distill"  # a hub checkpoint's entry that only we read: what its `args` have no place for
UNKNOWN_LICENCE = "the checkpoint's own (of NVIDIA's releases: what their model cards say)"
USUAL_GRID = 32  # a checkpoint does not say where it is at home: 512 pixels for patches of 16
# The Hugging Face layout is the hub's with other beginnings.
FOLDER_TRUNK = {"base_model.": "radio_model.model.", "input_conditioner.": "radio_model.input_conditioner."}
FOLDER_HEADS = {"_heads": "head_mlp", "_feature_projections": "feat_mlp"}


@dataclass(frozen=True)
class StudentFiles:
    """A student as it lies on disk."""

    name: str
    spec: RadioSpec
    config: dict[str, Any]  # licence, preferred_size, teachers
    weights: dict[str, Tensor]  # by the names of `RadioModel`
    card: str | None = None  # its model card


def is_checkpoint(path: str | Path) -> bool:
    """Whether `path` is meant as a checkpoint file rather than as a folder."""
    return str(path).endswith(CHECKPOINTS)


def find_student(path: str | Path) -> Path:
    """What `path` means: a checkpoint file, an export or Hugging Face folder, or `export/` inside a run folder."""
    path = Path(path).expanduser()
    if path.is_file() and is_checkpoint(path):
        return path
    for folder in (path, path / "export"):
        if (folder / CONFIG).is_file():
            return folder
    if not path.exists():
        kind = "file" if is_checkpoint(path) else "folder"
        raise UserError(f"no such {kind}: {path}", expected=WHAT)
    raise UserError(
        f"{path} holds no exported student",
        expected=f"{CONFIG} and {WEIGHTS} there or in {path}/export",
        todo=f"python -m radio_distill.export {path}",
    )


def weights_file(place: Path) -> Path:
    """The file with the weights of a student that `find_student` found."""
    return place if place.is_file() else place / WEIGHTS


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json: ours, its format checked, or one that a released RADIO has on Hugging Face."""
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read: {error}") from None
    if config.get("format") != FORMAT and not _is_released(config):
        raise UserError(f"{folder / CONFIG} has format {config.get('format')!r}", expected=f"'{FORMAT}' (a student)")
    return config


def is_export(folder: Path) -> bool:
    """Whether a folder holds a student that we exported: its config says so."""
    return says(folder / CONFIG, "format", FORMAT)


def read_spec(path: str | Path) -> tuple[RadioSpec, dict[str, Any]]:
    """The description alone: enough to build the structure."""
    place = find_student(path)
    if place.is_dir() and not _is_released(config := read_config(place)):
        return RadioSpec.from_dict(config["spec"]), config
    student = read_student(place)
    return student.spec, student.config


def read_student(path: str | Path) -> StudentFiles:
    """The student at `path`, on the CPU; raises `UserError` where it is not there or not whole."""
    place = find_student(path)
    if place.is_file():
        return _from_checkpoint(place)
    config = read_config(place)
    state = _read_tensors(place)
    if _is_released(config):
        spec, weights, config = _released(f"{place}", config["args"], to_hub_names(state))
    else:
        spec = RadioSpec.from_dict(config["spec"])
        in_folder_layout = any(key.startswith("radio_model.") for key in state)
        weights = from_hub(spec, to_hub_names(state)) if in_folder_layout else state
    card = place / CARD
    name = place.resolve().parent.name if place.name == "export" else place.resolve().name
    return StudentFiles(name, spec, config, weights, card.read_text() if card.is_file() else None)


def _is_released(config: Mapping[str, Any]) -> bool:
    return "format" not in config and isinstance(config.get("args"), dict)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(folder / WEIGHTS, of=f"the student in {folder}")
    except UserError as error:
        raise not_whole(folder, error) from None


def not_whole(place: Path, error: Exception) -> UserError:
    """What to say of weights that are not those of the description beside them."""
    first = " ".join(str(error).splitlines()[:2])
    source = place.parent if place.name == "export" else place
    again = f"export the run again: python -m radio_distill.export {source}"
    if place.is_file():
        again = "get the file again, or write it again: python -m radio_distill.export RUN --format hub"
    return UserError(
        f"{weights_file(place)} does not hold the student that is described there: {first}",
        expected="a whole file, made together with its description",
        todo=again,
    )


# A checkpoint of the public hub ------------------------------------------------------------------------------------


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The dict in a hub checkpoint. Nothing in it is executed: tensors, plain values and `argparse.Namespace` only."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, "cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {' '.join(str(error).split())[:200]}",
            expected="a whole checkpoint of tensors, plain values and argparse.Namespace (nothing else is unpickled)",
        ) from None
    known = isinstance(checkpoint, dict) and "args" in checkpoint and {"state_dict", "state_dict_ema"} & set(checkpoint)
    if not known:
        raise UserError(f"{path} is no RADIO checkpoint", expected="a dict with args and state_dict (the hub's layout)")
    return checkpoint


def _from_checkpoint(path: Path) -> StudentFiles:
    checkpoint = load_checkpoint(path)
    args, ours = checkpoint["args"], checkpoint.get(OURS, {})
    # An average of the weights is the model that was meant to be used, and it is never reparametrised.
    state = checkpoint.get("state_dict_ema") or checkpoint["state_dict"]
    state = {key.removeprefix("module."): tensor for key, tensor in state.items() if isinstance(tensor, Tensor)}
    for name in ours.get("without_summary", ()):  # the hub wants a summary head of every teacher: this one is empty
        state = {key: tensor for key, tensor in state.items() if not key.startswith(f"_heads.{name}.")}
    spec, weights, config = _released(f"{path}", args if isinstance(args, dict) else vars(args), state)
    name = next(path.name.removesuffix(suffix) for suffix in CHECKPOINTS if path.name.endswith(suffix))
    spec = replace(spec, **ours.get("spec", {}))
    return StudentFiles(name, spec, {**config, **ours.get("config", {})}, weights)


def _released(
    place: str, args: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[RadioSpec, dict[str, Tensor], dict[str, Any]]:
    """Hub layout → description, weights by our names, and what can be known of the student's teachers."""
    try:
        spec = spec_from_checkpoint(args, state)
        names = [teacher["name"] for teacher in args.get("teachers") or []]
        weights = from_hub(spec, state, names)
    except UserError as error:
        raise UserError(f"{place}: {error.what}", expected=error.expected, todo=error.todo) from None
    side = min(spec.cpe_max, USUAL_GRID * spec.patch)
    teachers: dict[str, dict] = {}
    for teacher in args.get("teachers") or []:
        teachers.setdefault(teacher["name"], _teacher(teacher))
    config = {"licence": UNKNOWN_LICENCE, "preferred_size": [side, side], "teachers": teachers}
    return spec, {key: tensor.float() for key, tensor in weights.items()}, config


def _teacher(teacher: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of `args.teachers` as the catalogue would build that teacher (for its text tower)."""
    kind, model = teacher.get("type"), teacher.get("model")
    if kind == "open_clip" and model:
        source = {"encoder": "open_clip", "weights": teacher.get("pretrained"), "options": {"model": model}}
    elif kind == "siglip2":
        giant = "-g" in f"{teacher['name']} {model}"
        source = {"encoder": "siglip2_g" if giant else "siglip2", "weights": None, "options": {}}
    else:
        source = {"encoder": kind, "weights": None, "options": {}}
    return {**source, "licence": UNKNOWN_LICENCE, "has_text": kind in ("open_clip", "siglip2")}


# The Hugging Face layout -------------------------------------------------------------------------------------------


def to_folder_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hub names → a Hugging Face folder's: `radio_model.model.*`, `radio_model.adaptors.NAME.{head,feat}_mlp.*`."""
    return {_folder_name(key): tensor for key, tensor in state.items()}


def _folder_name(key: str) -> str:
    for hub, folder in FOLDER_TRUNK.items():
        if key.startswith(hub):
            return folder + key.removeprefix(hub)
    kind, name, rest = key.split(".", 2)
    return f"radio_model.adaptors.{name}.{FOLDER_HEADS[kind]}.{rest}"


def to_hub_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of a Hugging Face folder → the hub's; what is no weight there (`summary_idxs`) is left out."""
    out = {}
    kinds = {folder: hub for hub, folder in FOLDER_HEADS.items()}
    for key, tensor in state.items():
        trunk = [hub for hub, folder in FOLDER_TRUNK.items() if key.startswith(folder)]
        parts = key.split(".", 4)
        if trunk:
            out[trunk[0] + key.removeprefix(FOLDER_TRUNK[trunk[0]])] = tensor
        elif parts[:2] == ["radio_model", "adaptors"] and parts[3] in kinds:
            out[".".join([kinds[parts[3]], parts[2], parts[4]])] = tensor
        elif parts[-1] != "summary_idxs":
            out[key] = tensor
    return out
