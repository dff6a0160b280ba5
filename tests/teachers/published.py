"""What publishers put on Hugging Face, as its cache holds it: true names, shapes, dtypes, and no data (no tests here).

The files are hollow: their headers are whole, their data is a hole that takes no room on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from teachers.weight_files import save_tensors

SAFE, PICKLED = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
TIMM_FILE = "model.safetensors"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Repository:
    """A repository on Hugging Face: one file of weights, and what is in it."""

    name: str
    file: str
    tensors: Callable[[], dict[str, Tensor]]  # on meta


def of_timm(model: str, file: str = TIMM_FILE, prefix: str = "", **extra: tuple[int, ...]) -> Repository:
    """What timm publishes of a model: its state dict as it was trained, with the classifier; `extra`: beside it."""

    def tensors() -> dict[str, Tensor]:
        import timm

        with torch.device("meta"):
            state = timm.create_model(model).state_dict()
        state = {**state, **{name: torch.empty(shape, device="meta") for name, shape in extra.items()}}
        return {prefix + name: tensor for name, tensor in state.items()}

    import timm

    return Repository(timm.get_pretrained_cfg(model).hf_hub_id, file, tensors)


def of_open_clip(model: str, tag: str, file: str = SAFE, dtype: torch.dtype = torch.float32, **extra) -> Repository:
    """What is published for a tag of open_clip: both towers, and `extra` beside them."""
    import open_clip

    def tensors() -> dict[str, Tensor]:
        with torch.device("meta"):
            state = open_clip.create_model(model, load_weights=False, pretrained_text=False, device="meta").state_dict()
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
        return {**state, **{name: torch.empty(shape, device="meta") for name, shape in extra.items()}}

    return Repository(open_clip.get_pretrained_cfg(model, tag)["hf_hub"].rpartition("/")[0], file, tensors)


def cache(folder: Path, repository: str, file: str, tensors: Mapping[str, Tensor]) -> Path:
    """Put a hollow file where the Hugging Face cache `folder` keeps a file of a repository."""
    root = folder / f"models--{repository.replace('/', '--')}"
    path = root / "snapshots" / REVISION / file
    path.parent.mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(REVISION)
    save_tensors(tensors, path) if path.suffix == ".safetensors" else save_hollow_pickle(tensors, path)
    return path


def save_hollow_pickle(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A file of torch.save whose storages are holes."""
    with FakeTensorMode():
        fakes = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(fakes, path)
