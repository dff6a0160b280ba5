"""A student on disk (a run, an export, a released RADIO) → an `Encoder`, with an `Encoder` a teacher in its heads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.features import Dims, Encoder, Features, identity_of
from teachers.radio import RadioModel
from teachers.radio_files import find_student, not_whole, read_spec, read_student
from teachers.seeding import seeded


class RadioEncoder(Encoder):
    """A student as an encoder: the concatenated summary tokens, and the backbone's patch features."""

    def __init__(self, model: RadioModel, config: dict[str, Any], name: str, card: str | None = None):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.config, self.name, self.card = config, name, card
        spec = model.spec
        self.patch_size = spec.patch
        self.native_size = tuple(config["preferred_size"])
        self.resolution_flexible = True
        self.dims = Dims(model.summary_width or None, spec.width)
        self.licence = config["licence"]
        self.identity = identity_of(model.state_dict(), spec.as_dict())

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> RadioEncoder:
        """From a run folder, an export or Hugging Face folder, or a checkpoint file of the RADIO hub."""
        student = read_student(path)
        with torch.device("meta"):
            model = RadioModel(student.spec)
        try:
            model.load_state_dict(student.weights, assign=True)
        except RuntimeError as error:
            raise not_whole(find_student(path), error) from None
        return cls(model, student.config, student.name, student.card).to(device)

    @classmethod
    def untrained(cls, path: str | Path, seed: int = 0, device: torch.device | str = "cpu") -> RadioEncoder:
        """The architecture at `path` with fresh weights: what training must beat."""
        spec, config = read_spec(path)
        with seeded("untrained", seed):
            model = RadioModel(spec)
        return cls(model, config, name="untrained").to(device)

    def check_size(self, size: tuple[int, int]) -> None:
        super().check_size(size)
        if max(size) > self.model.spec.cpe_max:
            raise UserError(
                f"{self.name} cannot take images of {size[0]}×{size[1]}",
                expected=f"at most {self.model.spec.cpe_max} pixels a side (the span of its position table)",
            )

    def forward(self, images: Tensor) -> Features:
        return self.everything(images, heads=())["backbone"]

    def everything(self, images: Tensor, heads: Collection[str] | None = None) -> dict[str, Features]:
        """`backbone` and every adaptor (or only the `heads` named) from one forward pass."""
        self.check(images)
        with torch.no_grad():
            return {name: Features(*output) for name, output in self.model(images.float(), heads=heads).items()}

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
        spec = student.model.spec.heads[head]
        self.up = spec.up
        self.patch_size, self.native_size = max(student.patch_size // spec.up, 1), student.native_size
        self.resolution_flexible, self.licence = True, student.licence
        self.dims = Dims(spec.summary, spec.spatial)
        self.identity = identity_of({}, student.identity, head)
        self._text: list[Encoder] = []  # in a list: the teacher is no part of this module's weights

    def check_size(self, size: tuple[int, int]) -> None:
        self.student.check_size(size)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        h, w = self.student.grid(size)
        return h * self.up, w * self.up

    def forward(self, images: Tensor) -> Features:
        return self.student.everything(images, heads=(self.head,))[self.head]

    def teacher(self) -> Encoder:
        """The teacher that this head learnt from, built from the catalogue; its weights must be at hand."""
        if not self._text:
            from teachers.catalogue import build

            source = self.source
            if source is None:
                raise UserError(f"{self.student.name} does not say which teacher its head {self.head} learnt from")
            device = next(self.student.model.parameters()).device
            encoder = build(source["encoder"], weights=source["weights"], device=device, **source["options"])
            self._text.append(encoder)
        return self._text[0]

    @property
    def source(self) -> dict[str, Any] | None:
        """How the catalogue builds that teacher, if the student's files say it."""
        return self.student.config["teachers"].get(self.head)

    @property
    def has_text(self) -> bool:
        return self.source is not None and bool(self.source["has_text"])

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self.teacher().encode_text(texts) if self.has_text else super().encode_text(texts)
