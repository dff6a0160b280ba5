"""Wraps an encoder and what enlarges its map into one `Encoder` of a finer grid.

Shapes: B images, f factor, R the encoder's native size, P its patch, C its width, h w its grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from featsharp import adapter as adapters
from featsharp.adapter import Adapter
from featsharp.budget import images_at_once, limit
from featsharp.config import SharpenerConfig
from featsharp.tiles import look
from teachers.errors import UserError
from teachers.features import Encoder, Features, Size, identity_of

UNTRAINED = ("bilinear", "tile", "s2")  # they have nothing to learn


class Sharpener(Encoder):
    """Images B×3×(f·R)×(f·R) → the encoder's summary of the whole, its map at f times the grid, in its own space.

    The image is shrunk to R for the whole and, where the upsampler wants them, cut into f×f tiles of R: one encoder
    call for all, or calls of `max_tiles_per_call` images. `patch_size` stays P: the grid grows as the image does.
    """

    def __init__(self, encoder: Encoder, config: SharpenerConfig, adapter: Adapter | None = None):
        super().__init__()
        self.config, self.factor = config, config.factor
        self.encoder = encoder
        self.folder: Path | None = None  # where `load` found it
        self.adapter = adapter or Adapter(config, encoder)
        limit(self.adapter, config.memory_budget)
        self.name = f"{encoder.name} {config.upsampler} {config.factor}x"
        self.patch_size, self.dims, self.licence = encoder.patch_size, encoder.dims, encoder.licence
        self.native_size = (encoder.native_size[0] * self.factor, encoder.native_size[1] * self.factor)
        self.resolution_flexible = encoder.resolution_flexible
        self.eval().requires_grad_(False)

    @property
    def identity(self) -> str:
        """Changes with the adapter's weights and with the encoder, not with how calls are chunked."""
        training = {"downsampler", "views", "losses", "lr_scale"}
        pieces = {"max_tiles_per_call", "max_cells_per_call", "memory_budget"}
        settings = self.config.model_dump(exclude=training | pieces)
        return identity_of(self.adapter.state_dict(), self.encoder.identity, settings)

    def train(self, mode: bool = True) -> Sharpener:
        """Stay in eval mode, as every frozen encoder does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        self.check(images)
        images = images.float()
        most = images_at_once(self.encoder, self._inner(tuple(images.shape[-2:])), self.config)
        whole, tiles, _ = look(self.encoder, images, self.factor, self.adapter.upsampler.tile_levels, most)
        sharp = self.adapter.sharpen(whole.spatial, tiles, images)
        if sharp.device.type == "cpu":  # elsewhere the answer would have to be waited for, at every call
            check_finite(sharp, self.name)
        return Features(whole.summary, sharp)

    def grid(self, size: Size) -> Size:
        h, w = self.encoder.grid(self._inner(size))
        return h * self.factor, w * self.factor

    def check_size(self, size: Size) -> None:
        f = self.factor
        if size[0] % f or size[1] % f:
            raise UserError(
                f"{self.name} cannot take images of {size[0]}×{size[1]}",
                expected=f"multiples of {f}, because {f}×{f} tiles of it are looked at",
            )
        try:
            self.encoder.check_size(self._inner(size))
        except UserError as error:
            raise UserError(
                f"{self.name} cannot take images of {size[0]}×{size[1]}: {error.what}",
                expected=f"{f} times this along each axis: {error.expected}",
            ) from None

    def _inner(self, size: Size) -> Size:
        return size[0] // self.factor, size[1] // self.factor

    @property
    def has_text(self) -> bool:
        return self.encoder.has_text

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self.encoder.encode_text(texts)

    def save(self, folder: Path | str) -> None:
        """Write the adapter (not the encoder): see `load`."""
        adapters.save(self.adapter, self.config, self.encoder, folder)


def check_finite(maps: Tensor, name: str) -> None:
    """Raise `UserError` where maps B×C×h×w hold NaN or infinity."""
    good = maps.isfinite().flatten(1).all(1)
    if not good.all():
        raise UserError(
            f"{name} gave features that are NaN or infinite, first for image {int(good.int().argmin())} of the batch",
            expected="finite images in [0, 1], and weights that fit the precision they run in",
            todo="look at that image; for an encoder in fp16 try the option dtype=fp32",
        )


def load(folder: Path | str, encoder: Encoder) -> Sharpener:
    """The sharpener kept in `folder`, around `encoder`, which must be the teacher it was trained for."""
    adapter, config = adapters.load(folder, encoder)
    sharpener = Sharpener(encoder, config, adapter)
    sharpener.folder = Path(folder)
    return sharpener


def build(spec: str | Path, encoder: Encoder, factor: int = 2, device: torch.device | str = "cpu") -> Sharpener:
    """`encoder` with a finer map: `spec` is "bilinear", "tile", "s2", or the folder of a trained sharpener or its run.

    `factor` is for the first three; a trained one knows its own. Raises `UserError` where there is no such sharpener.
    """
    if spec in UNTRAINED:
        try:
            config = SharpenerConfig(upsampler=str(spec), factor=factor, bias=False)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise UserError(f"{encoder.name} cannot be sharpened {factor} times", expected=reason) from None
        return Sharpener(encoder, config).to(device)
    return load(find(spec), encoder).to(device)


def build_teacher(
    spec: str | Path, name: str | None = None, weights: str | None = None, device: torch.device | str = "cpu"
) -> Encoder:
    """The teacher that the sharpener `spec` was trained for, or the one that the catalogue calls `name`.

    Raises `UserError` where the sharpener does not say its teacher, and where the teacher's weights are missing.
    """
    from teachers import catalogue

    known = {} if spec in UNTRAINED else adapters.read_config(find(spec))["teacher"]["built_from"] or {}
    name = name or known.get("encoder")
    if name is None:
        raise UserError(
            f"{spec} does not say which teacher to build",
            todo="add --teacher NAME (and --weights where they are not the catalogue's)",
        )
    known = known if name == known.get("encoder") else {}
    return catalogue.build(name, weights=weights or known.get("weights"), device=device, **known.get("options", {}))


def find(spec: str | Path) -> Path:
    """The folder of the adapter that `spec` means: itself, or `export/` in a run folder."""
    for folder in (Path(spec) / "export", Path(spec)):
        if (folder / adapters.CONFIG).is_file() and (folder / adapters.WEIGHTS).is_file():
            return folder
    raise UserError(
        f"no trained sharpener in {spec}",
        expected="the run folder of a finished `task: sharpen`, or one of " + ", ".join(UNTRAINED),
        todo=f"deepspeed radio_distill/train.py recipes/featsharp/TEACHER.yaml run={spec}",
    )


def missing(spec: str | Path) -> str | None:
    """None where `build` would find its sharpener, else the text that says how to get it."""
    try:
        if spec not in UNTRAINED:
            find(spec)
    except UserError as error:
        return str(error)
    return None
