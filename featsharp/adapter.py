"""The trained part of a sharpener: a teacher's raw maps and the image → a sharper raw map; kept as one small folder.

Shapes: B images, C the teacher's width, h w its grid, f factor, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from featsharp.bias import PositionBias
from featsharp.budget import limit
from featsharp.config import SharpenerConfig
from featsharp.tiles import Tiled, each
from featsharp.upsamplers import build_upsampler
from teachers.errors import UserError
from teachers.features import Encoder, has_values
from teachers.phi_s import PhiS
from teachers.spectral import folded_state, reparametrise
from teachers.weight_files import read_tensors, save_tensors
from teachers.written_folders import FolderWriter, says

KIND, VERSION = "featsharp-adapter", 1
WEIGHTS, CONFIG = "adapter.safetensors", "config.json"
DOWNSAMPLER = "downsampler.safetensors"  # sharpening does not need it, judging the sharpener does


class Adapter(nn.Module):
    """PHI-S normalisation, position bias and upsampler of one teacher. The teacher itself is not inside."""

    def __init__(self, config: SharpenerConfig, encoder: Encoder):
        super().__init__()
        width = encoder.dims.spatial
        self.phi_s = PhiS(width)
        grid = encoder.grid(encoder.native_size)
        self.bias = PositionBias(width, grid, config.conditional_bias) if config.bias else None
        self.upsampler = build_upsampler(config, width)
        limit(self.upsampler, config.memory_budget)
        if config.spectral:
            reparametrise(self)

    def forward(self, low: Tensor, tiles: Tiled, image: Tensor) -> Tensor:
        """Maps in PHI-S space B×C×h×w, B×C×fh×fw (or none, or several), image B×3×H×W in [0, 1] → B×C×fh×fw there."""
        if self.bias is not None:
            low = self.bias(low)
            h = low.shape[-2]
            tiles = each(tiles, lambda x: self.bias(x, x.shape[-2] // h))
        dtype = next(self.upsampler.parameters(), low).dtype
        image = 4 * image - 2  # about what the teachers' own whitening gives
        return self.upsampler(low.to(dtype), each(tiles, lambda x: x.to(dtype)), image.to(dtype))

    def sharpen(self, low: Tensor, tiles: Tiled, image: Tensor) -> Tensor:
        """The same from and to the teacher's space; fp32."""
        return self.phi_s.inverse(self.forward(self.phi_s(low), each(tiles, self.phi_s), image).float())


def save(
    adapter: Adapter,
    config: SharpenerConfig,
    encoder: Encoder,
    folder: Path | str,
    *,
    built_from: Mapping[str, Any] | None = None,
    fidelity: Mapping[str, float] | None = None,
    downsampler: nn.Module | None = None,
) -> None:
    """Write `folder`: the weights, and a config that names their teacher. An earlier sharpener survives a failure.

    Raises `UserError` where the folder holds something else.

    Args:
        built_from: what `teachers.catalogue.build` was given for the encoder (`encoder`, `weights`, `options`).
        fidelity: held-out figures, see `featsharp.fidelity`.
        downsampler: what was trained along with it; without it the sharpener can be used but no longer judged.
    """
    about = {
        "kind": KIND,
        "version": VERSION,
        "teacher": {**_describe(encoder), "built_from": None if built_from is None else dict(built_from)},
        "sharpener": config.model_dump(),
        "fidelity": dict(fidelity or {}),
    }
    with FolderWriter(Path(folder), is_adapter, "a sharpener", (CONFIG, WEIGHTS, DOWNSAMPLER)) as new:
        for name, module in {WEIGHTS: adapter, DOWNSAMPLER: downsampler}.items():
            if module is not None:
                save_tensors(folded_state(module), new / name)
        (new / CONFIG).write_text(json.dumps(about, indent=2) + "\n")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a sharpener that we wrote: its config says so."""
    return says(folder / CONFIG, "kind", KIND)


def load(folder: Path | str, encoder: Encoder) -> tuple[Adapter, SharpenerConfig]:
    """The adapter kept in `folder`, on the CPU; `UserError` where it is damaged or belongs to another teacher."""
    folder = Path(folder)
    config = read_settings(folder)
    check_teacher(encoder, read_config(folder)["teacher"], f"the sharpener in {folder}", config)
    adapter = Adapter(config.model_copy(update={"spectral": False}), encoder)  # it was saved folded
    load_weights(adapter, folder / WEIGHTS)
    return adapter, config


def check_teacher(encoder: Encoder, its: Mapping[str, Any], what: str, config: SharpenerConfig) -> None:
    """Raise `UserError` where `encoder` is not the teacher that the sharpener `what` was trained for.

    Without values (a plan, a rehearsal) there is no identity to compare: then width, patch and size must do.

    Args:
        its: the description that `save` wrote of the teacher.
    """
    mine, keys = _describe(encoder), ["width", "patch_size"]
    if config.bias:  # a table of that teacher's own cells
        keys.append("native_size")
    if all(has_values(parameter) for parameter in encoder.parameters()):
        keys.append("identity")
    if any(mine[key] != its[key] for key in keys):
        its, mine = ({**one, "size": "×".join(map(str, one["native_size"]))} for one in (its, mine))
        words = "{name} at {size} px ({identity}, width {width}, patch {patch_size})"
        raise UserError(
            f"{what} was trained for another teacher",
            expected=words.format(**its) + "; this one is " + words.format(**mine),
            todo="take that teacher (encoder, weights, options), or train a sharpener for this one",
        )


def read_settings(folder: Path) -> SharpenerConfig:
    """The `sharpener` section of the adapter's `config.json`; `UserError` where it holds what cannot be."""
    try:
        return SharpenerConfig.model_validate(read_config(folder)["sharpener"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("sharpener", *first["loc"])))
        raise UserError(f"{folder / CONFIG}: {where}: {first['msg']}", todo="write it again from its run") from None


def load_weights(module: nn.Module, file: Path) -> None:
    """Fill `module` from a file that `save` wrote; `UserError` where it is damaged or gone."""
    try:
        module.load_state_dict(read_tensors(file, of="the sharpener"))
    except (UserError, RuntimeError) as error:
        raise UserError(f"{file} cannot be loaded: {error}", todo="write it again from its run") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's `config.json`: `teacher`, `sharpener`, `fidelity`."""
    try:
        about = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        expected = "the folder of a trained sharpener"
        raise UserError(f"{folder / CONFIG} cannot be read: {error}", expected=expected) from None
    if not isinstance(about, dict) or about.get("kind") != KIND or about.get("version") != VERSION:
        expected = f"kind {KIND}, version {VERSION}"
        raise UserError(f"{folder / CONFIG} is no sharpener of this version", expected=expected)
    return about


def _describe(encoder: Encoder) -> dict[str, Any]:
    return {
        "name": encoder.name,
        "identity": encoder.identity,
        "width": encoder.dims.spatial,
        "patch_size": encoder.patch_size,
        "native_size": list(encoder.native_size),
        "licence": encoder.licence,
    }
