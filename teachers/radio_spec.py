"""The description of a RADIO-style student: sizes, options and a teacher's heads, as an export's config.json keeps it.

Sources: AM-RADIO (arXiv 2312.06709), RADIOv2.5 (arXiv 2412.07679), the C-RADIOv4 report, and the layout of the public
checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from teachers.errors import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ATTENTION_HEADS = 16  # of an attention head's two blocks, whatever its width


@dataclass(frozen=True)
class MlpSpec:
    """One adaptor MLP: Linear to `hidden`, inner layers, Linear to the teacher's width."""

    hidden: int
    blocks: int = 0  # inner layers
    version: Literal["v1", "v2", "attention"] = "v2"  # attention: features only


@dataclass(frozen=True)
class HeadSpec:
    """One teacher's heads."""

    spatial: int  # width of its features
    spatial_mlp: MlpSpec
    summary: int | None = None  # width of its summary; None: no summary head
    summary_mlp: MlpSpec | None = None
    supervised: bool = True  # its token is a part of the backbone's summary (RADIO's use_summary), if it has a summary
    token: int | None = None  # the summary token that it reads; None: its place among the teachers
    up: int = 1  # the feature head answers at `up` times the grid

    def __post_init__(self) -> None:
        assert (self.summary is None) == (self.summary_mlp is None), "a summary head needs its width and its MLP"
        assert self.summary_mlp is None or self.summary_mlp.version != "attention", "attention heads are for features"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HeadSpec:
        mlps = {key: MlpSpec(**data[key]) for key in ("spatial_mlp", "summary_mlp") if data.get(key) is not None}
        return cls(**{**data, **mlps})


@dataclass(frozen=True)
class RadioSpec:
    """All that it takes to build the module again."""

    patch: int
    width: int
    depth: int
    num_heads: int
    cpe_max: int  # pixels a side that the table of positions spans
    registers: int
    heads: dict[str, HeadSpec]
    stem: Literal["linear", "conv"] = "linear"
    patch_bias: bool = False
    mlp: Literal["gelu", "swiglu"] = "gelu"
    mlp_ratio: float = 4.0  # of a SwiGLU the width that a plain MLP of as many weights would have
    layer_scale: float | None = None
    token_per_teacher: bool = True  # else all teachers share one summary token
    position_dropout: float = 0.0
    drop_path: float = 0.0
    activation_checkpointing: bool = False
    global_blocks: int = 4  # of windowed mode: how many blocks see the whole grid
    windowed_blocks: int | None = None  # windowed ones before each of those; None: the depth shared out evenly
    spectral: bool = False
    spectral_heads: bool = False
    damp: float = 0.0  # deviation of the multiplicative weight noise in training
    final_norm: bool = False
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __post_init__(self) -> None:
        wrong = [name for name, head in self.heads.items() if (head.token or 0) >= self.summary_tokens]
        if wrong:
            token = self.heads[wrong[0]].token
            raise UserError(f"teacher {wrong[0]} reads summary token {token}, of {self.summary_tokens}")
        attentive = [name for name, head in self.heads.items() if head.spatial_mlp.version == "attention"]
        if attentive and self.width % ATTENTION_HEADS:
            raise UserError(
                f"the attention head of {attentive[0]} cannot split a width of {self.width} into {ATTENTION_HEADS}",
                expected=f"a student whose width is a multiple of {ATTENTION_HEADS}, or head version v1 or v2",
            )

    @property
    def summary_tokens(self) -> int:
        """T: one a teacher, or one."""
        return len(self.heads) if self.token_per_teacher else 1

    @property
    def token_of(self) -> dict[str, int]:
        """The summary token that each teacher's summary head reads."""
        places = {name: place if self.token_per_teacher else 0 for place, name in enumerate(self.heads)}
        return {name: places[name] if head.token is None else head.token for name, head in self.heads.items()}

    @property
    def summary_slots(self) -> list[int]:
        """The tokens that make the backbone's summary: the supervised ones, sorted and distinct."""
        heads = self.heads
        return sorted({t for name, t in self.token_of.items() if heads[name].supervised and heads[name].summary})

    @property
    def window_period(self) -> int:
        """In windowed mode every block of this number is global, and the last; raises `UserError` where none is left.

        ViTDet (arXiv 2203.16527) as RADIO uses it.
        """
        if self.windowed_blocks is not None:
            period = self.windowed_blocks + 1
        else:
            period = self.depth // max(self.global_blocks, 1)
        if period < 2:
            raise UserError(
                f"a trunk of {self.depth} blocks has no windowed ones beside {self.global_blocks} global ones",
                expected="a depth of twice global_blocks or more",
                todo=f"student.global_blocks={max(self.depth // 2, 1)}, or student.windowed_blocks=1",
            )
        return period

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RadioSpec:
        """From `as_dict`, also through JSON, and from the descriptions of earlier exports."""
        data = _of_today(dict(data))
        heads = {name: HeadSpec.from_dict(head) for name, head in data["heads"].items()}
        colours = {key: tuple(data[key]) for key in ("mean", "std") if key in data}
        return cls(**{**data, **colours, "heads": heads})


def _of_today(data: dict[str, Any]) -> dict[str, Any]:
    """Earlier exports had one size of MLP for all heads, and left out of the summary whom they gave no summary head."""
    if "head_hidden" not in data:
        return data
    mlp = asdict(MlpSpec(data.pop("head_hidden"), data.pop("head_blocks")))
    heads = {}
    for name, head in data["heads"].items():
        has_summary = head["summary"] is not None
        heads[name] = {**head, "spatial_mlp": mlp, "summary_mlp": mlp if has_summary else None}
        heads[name]["supervised"] = has_summary
    return {**data, "heads": heads}


def swiglu_hidden(width: int, ratio: float) -> int:
    """The hidden width of a SwiGLU with about as many weights as an MLP of `ratio`: two thirds, to multiples of 8."""
    return math.ceil(int(round(width * ratio) * 2 / 3) / 8) * 8
