"""An exported student (or a run folder that holds one) → an `Encoder`, with an `Encoder` a teacher in its heads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.features import Dims, Encoder, Features, identity_of
from teachers.radio import RadioModel, RadioOutput, RadioSpec
from teachers.seeding import seeded

FORMAT = "radio-distill/1"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def find_export(path: str | Path) -> Path:
    """The export folder meant by `path`: itself, or `export/` inside a run folder."""
    path = Path(path).expanduser()
    for folder in (path, path / "export"):
        if (folder / CONFIG).is_file():
            return folder
    if not path.exists():
        raise UserError(f"no such folder: {path}", expected="a run folder, or an export folder")
    raise UserError(
        f"{path} holds no exported student",
        expected=f"{CONFIG} and {WEIGHTS} there or in {path}/export",
        todo=f"python -m radio_distill.export {path}",
    )


def read_config(folder: Path) -> dict[str, Any]:
    """An export's config.json, its format checked."""
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read: {error}") from None
    if config.get("format") != FORMAT:
        raise UserError(f"{folder / CONFIG} has format {config.get('format')!r}", expected=f"'{FORMAT}' (a student)")
    return config


class RadioEncoder(Encoder):
    """A student as an encoder: the concatenated summary tokens, and the backbone's patch features."""

    def __init__(self, model: RadioModel, config: dict[str, Any], name: str):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.config, self.name = config, name
        spec = model.spec
        self.patch_size = spec.patch
        self.native_size = tuple(config["preferred_size"])
        self.resolution_flexible = True
        self.dims = Dims(model.summary_width or None, spec.width)
        self.licence = config["licence"]
        self.identity = identity_of(model.state_dict(), spec.as_dict())

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> RadioEncoder:
        """From a run folder or an export folder."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = find_export(path)
        config = read_config(folder)
        model = RadioModel(RadioSpec.from_dict(config["spec"]))
        try:
            model.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, RuntimeError, SafetensorError) as error:
            first = str(error).splitlines()
            raise UserError(
                f"{folder / WEIGHTS} does not hold the student that {CONFIG} describes: {' '.join(first[:2])}",
                todo=f"export the run again: python -m radio_distill.export {path}",
            ) from None
        return cls(model, config, name=folder.parent.name if folder.name == "export" else folder.name).to(device)

    @classmethod
    def untrained(cls, path: str | Path, seed: int = 0, device: torch.device | str = "cpu") -> RadioEncoder:
        """The architecture at `path` with fresh weights: what training must beat."""
        folder = find_export(path)
        config = read_config(folder)
        with seeded("untrained", seed):
            model = RadioModel(RadioSpec.from_dict(config["spec"]))
        return cls(model, config, name="untrained").to(device)

    def check_size(self, size: tuple[int, int]) -> None:
        super().check_size(size)
        if max(size) > self.model.spec.cpe_max:
            raise UserError(
                f"{self.name} cannot take images of {size[0]}×{size[1]}",
                expected=f"at most {self.model.spec.cpe_max} pixels a side (the span of its position table)",
            )

    def forward(self, images: Tensor) -> Features:
        return self.everything(images)["backbone"]

    def everything(self, images: Tensor) -> dict[str, Features]:
        """`backbone` and every adaptor from one forward pass."""
        self.check(images)
        with torch.no_grad():
            return {name: Features(*output) for name, output in self.model(images.float()).items()}

    def train(self, mode: bool = True) -> RadioEncoder:
        """Stay in eval mode, also as a part of a module in training: positions must not be cropped at random."""
        return super().train(False)

    @property
    def adaptor_names(self) -> tuple[str, ...]:
        return tuple(self.model.heads)

    def adaptor(self, name: str) -> AdaptorEncoder:
        """The head of teacher `name` as an encoder in that teacher's space."""
        if name not in self.model.heads:
            raise UserError(f"{self.name} has no head {name!r}", expected="one of " + ", ".join(self.adaptor_names))
        return AdaptorEncoder(self, name)


class AdaptorEncoder(Encoder):
    """One head of a student: features in its teacher's space, and the teacher's text tower beside them."""

    def __init__(self, student: RadioEncoder, head: str):
        super().__init__()
        self.student, self.head = student, head
        self.name = f"{student.name}:{head}"
        self.patch_size, self.native_size = student.patch_size, student.native_size
        self.resolution_flexible, self.licence = True, student.licence
        spec = student.model.spec.heads[head]
        self.dims = Dims(spec.summary, spec.spatial)
        self.identity = identity_of({}, student.identity, head)
        self._text: list[Encoder] = []  # in a list: the teacher is no part of this module's weights

    def check_size(self, size: tuple[int, int]) -> None:
        self.student.check_size(size)

    def forward(self, images: Tensor) -> Features:
        return self.student.everything(images)[self.head]

    def teacher(self) -> Encoder:
        """The teacher that this head learnt from, built from the catalogue; its weights must be at hand."""
        if not self._text:
            from teachers.catalogue import build

            source = self.student.config["teachers"][self.head]
            device = next(self.student.model.parameters()).device
            encoder = build(source["encoder"], weights=source["weights"], device=device, **source["options"])
            self._text.append(encoder)
        return self._text[0]

    @property
    def has_text(self) -> bool:
        return bool(self.student.config["teachers"][self.head]["has_text"])

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self.teacher().encode_text(texts) if self.has_text else super().encode_text(texts)


class HubStudent(torch.nn.Module):
    """A student with RADIO's calling convention, as `torch.hub.load(..., 'student', path)` gives it.

    `model(images)` → `(summary, features)`; with `adaptor_names`, a dict of such pairs with `backbone` among them.
    Images are B×3×H×W in [0, 1]; features are B×N×D (`feature_fmt="NLC"`) or B×D×h×w (`"NCHW"`).
    """

    def __init__(self, encoder: RadioEncoder, adaptor_names: Sequence[str] = ()):
        super().__init__()
        unknown = [name for name in adaptor_names if name not in encoder.adaptor_names]
        if unknown:
            raise UserError(f"no head named {unknown[0]!r}", expected="one of " + ", ".join(encoder.adaptor_names))
        self.encoder, self.adaptor_names = encoder, tuple(adaptor_names)
        spec = encoder.model.spec
        self.patch_size = self.min_resolution_step = spec.patch
        self.window_size = None
        self.max_resolution = spec.cpe_max
        self.preferred_resolution = encoder.native_size
        self.embed_dim, self.summary_dim = spec.width, encoder.model.summary_width
        self.num_cls_tokens = len(spec.heads)
        self.num_summary_tokens = self.num_cls_tokens + spec.registers

    @property
    def blocks(self) -> torch.nn.ModuleList:
        return self.encoder.model.blocks

    def get_nearest_supported_resolution(self, height: int, width: int) -> tuple[int, int]:
        """The nearest size that `forward` takes, at least one patch."""
        step = self.min_resolution_step
        return tuple(min(max(round(side / step), 1) * step, self.max_resolution) for side in (height, width))

    def forward(self, images: Tensor, feature_fmt: str = "NLC") -> RadioOutput | dict[str, RadioOutput]:
        if feature_fmt not in ("NLC", "NCHW"):
            raise UserError(f"unknown feature_fmt {feature_fmt!r}", expected="NLC or NCHW")
        self.encoder.check(images)
        outputs = self.encoder.model(images)
        if feature_fmt == "NLC":
            outputs = {name: RadioOutput(o.summary, o.features.flatten(2).mT) for name, o in outputs.items()}
        if not self.adaptor_names:
            return outputs["backbone"]
        return {name: outputs[name] for name in ("backbone", *self.adaptor_names)}
