"""Turns any timm model (plain ViT, CNN or other pyramid, SAM's trunk) into an encoder.

plain ViT  spatial: patch tokens after the last norm, prefix tokens (class, registers) dropped; summary: what the
           classifier would see (class token, average or attention pool, as the model was trained). Any size that is
           a multiple of the patch, where the model can interpolate its positions.
pyramid    (CNNs, Swin, ...) spatial: the deepest map of stride `layer`; summary: what the classifier would see, the
           pooled end of the whole network, whichever layer is taken.
SAM        spatial: the last block's map, before the neck; no summary; one size.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from teachers import weight_files
from teachers.errors import UserError
from teachers.features import Dims, Size, Whiten
from teachers.frozen import FrozenEncoder, as_dtype, as_size, on_meta
from teachers.random_weights import fast_initialization

FILE_NAMES = ("model.safetensors", "pytorch_model.bin")


class TimmEncoder(FrozenEncoder):
    """A timm network that has been built and loaded (`build` does both)."""

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        licence: str,
        layer: int | None,
        image_size: int | list[int] | None,
        dtype: str | torch.dtype,
        changed: Mapping[str, object] | None = None,
    ):
        super().__init__()
        self.network = network
        self.kind = _kind(network)
        self.index = _index(network, self.kind, layer, name)
        taken = network.feature_info[self.index]
        stride = taken["reduction"]
        if image_size is None:
            native = tuple(side // stride * stride for side in _trained_size(network))
        else:
            native = as_size(image_size)
        summary = None if self.kind == "sam" else network.head_hidden_size
        self.network.to(as_dtype(dtype))
        self.whiten = Whiten(network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
        self.declare(
            name=name,
            licence=licence,
            patch_size=stride,
            native_size=native,
            resolution_flexible=_is_flexible(network),
            dims=Dims(summary, taken["num_chs"]),
            # What was changed in the architecture may leave no trace in the tensors: how it pools, say.
            notes=(self.kind, self.index, *([sorted(changed.items())] if changed else [])),
        )
        if self.kind == "pyramid":
            self.network.to(memory_format=torch.channels_last)  # convolutions run half as long again without
            self._check_alignment()

    def encode(self, whitened: Tensor) -> tuple[Tensor | None, Tensor]:
        if self.kind == "sam":
            maps = self.network.forward_intermediates(whitened, indices=[self.index], intermediates_only=True)
            return None, maps[0]
        on_tokens = self.kind == "vit"  # a pyramid's last norm belongs to its last map only
        if self.kind == "pyramid":
            whitened = whitened.contiguous(memory_format=torch.channels_last)
        last, maps = self.network.forward_intermediates(whitened, indices=[self.index], norm=on_tokens)
        return self.network.forward_head(last, pre_logits=True), maps[0]

    def _check_alignment(self) -> None:
        """A convolution without padding yields fewer cells than size / stride: then cells do not tile the image."""
        got = grid_of(self, self.native_size)
        if got != self.grid(self.native_size):
            raise UserError(
                f"{self.name}: its stride-{self.patch_size} map of {self.native_size[0]}×{self.native_size[1]} pixels "
                f"has {got[0]}×{got[1]} cells, which do not tile the image",
                expected="a network with padded convolutions, or another layer",
            )


def grid_of(encoder: TimmEncoder, size: Size) -> Size:
    """The grid that the network's own arithmetic gives for images of `size`, worked out on the meta device."""
    tensors = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    images = torch.empty(1, 3, *size, device="meta")
    return tuple(torch.func.functional_call(encoder, shapes, (images,)).spatial.shape[2:])


def build(
    *,
    name: str = "timm",
    licence: str | None = None,
    weights: str | None = None,
    meta: bool = False,
    device: torch.device | str = "cpu",
    model: str | None = None,
    model_args: dict[str, object] | None = None,
    layer: int | None = None,
    match: str = "name",
    image_size: int | list[int] | None = None,
    dtype: str | torch.dtype = "fp32",
    seed: int = 0,
) -> TimmEncoder:
    """The encoder of a timm `model` ("vit_base_patch16_224", or with its tag: "vit_large_patch14_reg4_dinov2.lvd142m").

    Args:
        weights: a file, "random", or None: the published weights of the model's tag.
        model_args: what to change in the architecture (embed_dim, depth, ...), as timm's `create_model` takes it.
        layer: the stride of the map to take from a pyramid; its coarsest by default.
        match: how the file's tensors find theirs: by "name", or by "position" (files of another library).
        image_size: another native size than the published one.
        seed: of a random initialisation.
    """
    if match not in ("name", "position"):
        raise UserError(f"{name}: match='{match}'", expected="name or position")
    file = None if meta or weights == "random" else locate(name=name, weights=weights, model=model)
    args = dict(model_args or {})
    if match == "name":
        args["num_classes"] = 0
    with on_meta(meta), fast_initialization("timm", seed):
        network = _network(name, model, args)
    if file is not None and match == "name":
        load_by_name(network, file, architecture=f"timm {model}")
    elif file is not None:
        load_by_position(network, file, architecture=f"timm {model}")
    if match == "position":
        network.reset_classifier(0)
    licence = licence or network.pretrained_cfg.get("license") or "the weights' own"
    with on_meta(meta):
        if image_size is not None and not _is_flexible(network) and hasattr(network, "set_input_size"):
            network.set_input_size(as_size(image_size))  # Swin and its like: one size, chosen here
        encoder = TimmEncoder(
            network,
            name=name,
            licence=licence,
            layer=layer,
            image_size=image_size,
            dtype=dtype,
            changed=model_args,
        )
    return encoder if meta else encoder.to(device)


def locate(*, name: str, weights: str | None = None, model: str | None = None, **_: object) -> Path:
    """The weights file that `build` would load; raises its `UserError` where there is none."""
    if weights is None or not weight_files.is_file_like(weights):
        weights = _published_at(name, model, weights)
    path = weight_files.find(weights, of=name, names=FILE_NAMES)
    if path.is_dir():
        found = [path / file for file in FILE_NAMES if (path / file).is_file()]
        if not found:
            raise UserError(f"the weights of {name} are not in {path}", expected=" or ".join(FILE_NAMES))
        return found[0]
    return path


def _published_at(name: str, model: str | None, tag: str | None) -> str:
    """Where the published weights of a model (of its own tag, or of `tag`) are kept, for `weight_files.find`."""
    import timm

    _check_model(name, model)
    architecture, _, own_tag = model.partition(".")
    tag = tag or own_tag
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and f"{architecture}.{tag}" not in tagged:
        tags = ", ".join(one.partition(".")[2] for one in tagged) or "none"
        raise UserError(f"{name}: timm {architecture} has no weights '{tag}'", expected=f"a tag ({tags}) or a file")
    published = timm.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
    if published is None or not published.hf_hub_id:
        raise UserError(f"{name}: no weights are published for timm {model}", todo="give weights=FILE")
    return f"hf:{published.hf_hub_id}"


# The network ------------------------------------------------------------------------------------------------------


def _check_model(name: str, model: str | None) -> None:
    import timm

    if model is None:
        raise UserError(
            f"{name} needs to know which model it is",
            expected="model=NAME, as timm names it",
            todo="python -c 'import timm; print(*timm.list_models(pretrained=True))'",
        )
    if not timm.is_model(model):
        close = difflib.get_close_matches(model.partition(".")[0], timm.list_models(), 5, 0.4)
        raise UserError(f"{name}: timm knows no model '{model}'", expected="one of " + ", ".join(close))


def _network(name: str, model: str | None, args: dict[str, object]) -> nn.Module:
    """The timm network without weights, able to interpolate its positions where its class can."""
    import timm

    _check_model(name, model)
    try:
        return timm.create_model(model, **{"dynamic_img_size": True, **args})
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise UserError(f"{name}: timm {model} cannot be built so: {error}") from error
    return timm.create_model(model, **args)


def _kind(network: nn.Module) -> str:
    if not hasattr(network, "forward_intermediates") or not hasattr(network, "feature_info"):
        raise UserError(f"timm's {type(network).__name__} cannot be asked for its feature maps")
    if "SAM" in type(network).__name__:
        return "sam"
    return "vit" if hasattr(network, "num_prefix_tokens") else "pyramid"


def _index(network: nn.Module, kind: str, layer: int | None, name: str) -> int:
    """Which of the network's feature maps is taken: the last, or the deepest of stride `layer`."""
    strides = [info["reduction"] for info in network.feature_info]
    if layer is None:
        return len(strides) - 1
    if kind != "pyramid" or layer not in strides:
        raise UserError(
            f"{name}: there is no layer={layer}",
            expected="a stride of its maps: " + ", ".join(str(stride) for stride in sorted(set(strides))),
        )
    return max(index for index, stride in enumerate(strides) if stride == layer)


def _is_flexible(network: nn.Module) -> bool:
    kind = _kind(network)
    if kind == "vit":
        return getattr(network, "dynamic_img_size", False) or getattr(network, "rope", None) is not None
    return kind == "pyramid" and not hasattr(network, "set_input_size")


def _trained_size(network: nn.Module) -> Size:
    embed = getattr(network, "patch_embed", None)
    size = getattr(embed, "img_size", None)
    return tuple(size) if size is not None else tuple(network.pretrained_cfg["input_size"][1:])


# Weights ----------------------------------------------------------------------------------------------------------


def load_by_name(network: nn.Module, file: Path, *, architecture: str) -> None:
    """Load timm's own files, and those of the original repositories that timm can convert; a classifier is left out."""
    tensors = weight_files.read_tensors(file, of=architecture)
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    wanted = network.state_dict()
    if convert is not None:
        try:
            tensors = convert(tensors, network)
        except Exception as error:  # a foreign file: the converter trips over whatever it looks for first
            weight_files.check_same_layout(tensors, wanted, path=file, architecture=architecture)
            raise UserError(f"{file}: timm cannot convert these weights for {architecture}: {error}") from error
    unused = _of_classifier(network, wanted)
    tensors = {key: tensor for key, tensor in tensors.items() if key in wanted or not key.startswith(unused)}
    weight_files.check_same_layout(tensors, wanted, path=file, architecture=architecture)
    network.load_state_dict(tensors)


def _of_classifier(network: nn.Module, wanted: Iterable[str]) -> tuple[str, ...]:
    """Beginnings of the keys that only a network with its classifier has: of a layer, or of several (MetaFormer's)."""
    classifiers = network.pretrained_cfg.get("classifier") or ()
    parts = [one.split(".") for one in ((classifiers,) if isinstance(classifiers, str) else classifiers)]
    above = {".".join(one[:end]) + "." for one in parts for end in range(1, len(one) + 1)}
    return tuple(one for one in above if not any(key.startswith(one) for key in wanted))


def load_by_position(network: nn.Module, file: Path, *, architecture: str) -> None:
    """Load a file whose tensors have other names but the same order and shapes (batch norm's counters aside)."""
    given = _without_counters(weight_files.read_tensors(file, of=architecture))
    wanted = _without_counters(network.state_dict())
    renamed = dict(zip(wanted, given.values()))
    if len(given) != len(wanted):
        raise UserError(
            f"{file}: these are not the weights of {architecture}; {_first_misfit(given, wanted)}",
            expected=f"{len(wanted)} tensors in the same order; the file has {len(given)}",
        )
    weight_files.check_same_layout(renamed, wanted, path=file, architecture=architecture)
    network.load_state_dict(renamed, strict=False)  # only the counters are missing, and they are not used


def _first_misfit(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    for (name, tensor), (other, place) in zip(given.items(), wanted.items()):
        if tensor.shape != place.shape:
            return f"{name} {tuple(tensor.shape)} stands where {other} {tuple(place.shape)} belongs"
    longer, what = (given, "is left over") if len(given) > len(wanted) else (wanted, "is not in the file")
    name = list(longer)[min(len(given), len(wanted))]
    return f"{name} {tuple(longer[name].shape)} {what}"


def _without_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
