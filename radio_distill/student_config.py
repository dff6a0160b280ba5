"""A recipe's `student` section and its heads: what the trained ViT looks like, and the only place of its defaults."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from teachers.section import Section

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Architecture(NamedTuple):
    """A ViT's size by name."""

    width: int
    depth: int
    num_heads: int
    mlp: str = "gelu"
    mlp_ratio: float = 4.0


# RADIO's sizes; the tiny ones are for a laptop's CPU. ViT-g is DINOv2's, whose blocks have SwiGLU.
ARCHITECTURES: dict[str, Architecture] = {
    "vit_nano": Architecture(128, 4, 4),
    "vit_micro": Architecture(192, 6, 3),
    "vit_tiny": Architecture(192, 12, 3),
    "vit_small": Architecture(384, 12, 6),
    "vit_base": Architecture(768, 12, 12),
    "vit_large": Architecture(1024, 24, 16),
    "vit_so400m": Architecture(1152, 27, 16, mlp_ratio=4304 / 1152),
    "vit_huge": Architecture(1280, 32, 16),
    "vit_giant": Architecture(1536, 40, 24, "swiglu"),
}


class HeadsConfig(Section):
    """Adaptor heads: for every teacher one for the summary and one for the features; a teacher may differ."""

    hidden: Positive | None = Field(None, description="width inside a head; none = the widest teacher's")
    blocks: Count = Field(0, description="residual blocks between the first and last layer")
    summary: Literal["v1", "v2"] = Field("v2", description="RADIO's mlp_version of the summary heads")
    features: Literal["v1", "v2", "attention"] = Field("v2", description="of the feature heads (spatial_mlp_version)")


class HeadConfig(Section):
    """One teacher's heads, where they differ from student.heads."""

    hidden: Positive | None = Field(None, description="none = student.heads.hidden")
    blocks: Count | None = Field(None, description="none = student.heads.blocks")
    summary: Literal["v1", "v2"] | None = Field(None, description="none = student.heads.summary")
    features: Literal["v1", "v2", "attention"] | None = Field(None, description="none = student.heads.features")
    up: Positive = Field(1, description="the feature head answers at this times the student's grid")


class StudentConfig(Section):
    """The ViT that is trained."""

    arch: str = Field("vit_base", description="one of " + ", ".join(ARCHITECTURES))
    width: Positive | None = Field(None, description="overrides the architecture's")
    depth: Positive | None = Field(None, description="overrides the architecture's")
    num_heads: Positive | None = Field(None, description="overrides the architecture's")
    mlp: Literal["gelu", "swiglu"] | None = Field(None, description="overrides the architecture's")
    layer_scale: Weight | None = Field(None, description="initial scale of every block's branches; none = no scales")
    patch: Positive = Field(16, description="pixels a patch")
    stem: Literal["linear", "conv"] = Field(
        "linear", description="how patches are embedded: one linear layer, as in RADIO, or a few convolutions"
    )
    patch_bias: bool = Field(False, description="a bias in the linear patch embedding, as DINOv2's")
    cpe_max: Positive = Field(2048, description="pixels that the position table spans; the largest size it can take")
    summary_tokens: Literal["teacher", "one"] = Field("teacher", description="one a teacher, or one that all share")
    registers: Count = Field(4, description="tokens that carry no target")
    register_multiple: Positive | None = Field(
        None, description="in place of registers: as many as make all tokens a multiple of this"
    )
    position_dropout: Fraction = Field(0.1, description="chance a training sample sees no positions")
    drop_path: Fraction = Field(0.0, description="stochastic depth, rising linearly to this in the last block")
    windows: list[Count] = Field(
        [], description="ViTDet windows (in patches, 0 = none) as augmentation; one that divides the grid is drawn"
    )
    global_blocks: Positive = Field(4, description="blocks that see everything in windowed mode")
    windowed_blocks: Positive | None = Field(None, description="instead: windowed blocks before each global one")
    spectral: bool = Field(False, description="spectral reparametrisation of the trunk (against attention collapse)")
    spectral_heads: bool = Field(False, description="of the heads too")
    damp: Weight = Field(0.0, description="DAMP: deviation of the noise that weights are multiplied with")
    final_norm: bool = Field(False, description="a norm behind the last block (RADIO has none)")
    init: str | None = Field(
        None, description="begin from timm:NAME, or from a RADIO checkpoint, an export or a run folder; none = random"
    )
    activation_checkpointing: bool = Field(False, description="recompute blocks in the backward pass: less memory")
    heads: HeadsConfig = HeadsConfig()

    @field_validator("arch")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {value!r}: use one of {', '.join(ARCHITECTURES)}")
        return value

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width, depth and attention heads, overrides applied."""
        known = ARCHITECTURES[self.arch]
        return self.width or known.width, self.depth or known.depth, self.num_heads or known.num_heads

    def register_count(self, teachers: int) -> int:
        """R beside the summary tokens of so many teachers; a multiple adds a whole one where nothing is missing."""
        if self.register_multiple is None:
            return self.registers
        summaries = teachers if self.summary_tokens == "teacher" else 1
        return self.register_multiple - summaries % self.register_multiple

    @model_validator(mode="after")
    def _whole(self) -> StudentConfig:
        width, depth, heads = self.shape
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {heads}")
        if self.cpe_max % self.patch:
            raise ValueError(f"cpe_max {self.cpe_max} is not a multiple of patch {self.patch}")
        if self.patch_bias and self.stem != "linear":
            raise ValueError("patch_bias is for stem: linear")
        if any(self.windows) and self.windowed_blocks is None and depth < 2 * self.global_blocks:
            # a period of one block would leave none of them windowed
            raise ValueError(f"windows need depth ≥ 2 × global_blocks, and depth is {depth}: lower global_blocks")
        return self
