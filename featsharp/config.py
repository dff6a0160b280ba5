"""The `sharpener:` section of a recipe: every option of a sharpener, with the only place of its defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    model_validator,
)

from teachers import section

Range = tuple[float, float]  # (lowest, highest) of a uniform draw


def _odd(window: int) -> int:
    if window % 2 == 0:
        raise ValueError("a window has a centre, so it must be odd")
    return window


Odd = Annotated[int, AfterValidator(_odd)]
Bytes = Annotated[int, Field(gt=0), BeforeValidator(TypeAdapter(ByteSize).validate_python)]  # 500000 or "4GiB"


class Section(section.Section):
    """A part of a recipe whose values are checked also when they are assigned later."""

    model_config = ConfigDict(validate_assignment=True)


class JbuConfig(Section):
    """Joint bilateral upsampling of the low-resolution map, guided by the image (Kopf 2007, FeatUp)."""

    radius: int = Field(3, ge=1, le=8, description="taps on each side of the centre: 3 means 7×7 = 49 weights a pixel")
    width: int = Field(32, ge=1, description="channels of the projection that compares guidance pixels")
    sigma: float = Field(0.15, gt=0, description="spatial width at first, in radii; published: 1, a blur to unlearn")
    guidance: Literal["area", "bilinear"] = Field(
        "area", description="how the image shrinks to the map's size; bilinear, as published, aliases"
    )
    implementation: Literal["auto", "composed", "shift_add", "triton", "shift"] = Field(
        "auto", description="composed: tiles and matrix products (CPU); triton: those fused (CUDA); shift_add: least "
        "memory; shift: one pass a tap, the reference; same result"
    )


class FeatUpConfig(Section):
    """FeatUp: joint bilateral upsampling alone; its kernels are the `jbu` section's."""

    correction: bool = Field(True, description="a learned linear correction of the enlarged map, as FeatUp published")


class CarafeConfig(Section):
    """Kernels predicted from the map itself (CARAFE)."""

    window: Odd = Field(5, ge=1, description="coarse cells along each axis that a fine one is averaged from; odd")
    width: int = Field(64, ge=1, description="channels that kernels are predicted from")
    context: Odd = Field(3, ge=1, description="coarse cells along each axis that a kernel is predicted from; odd")
    sigma: float = Field(
        0.4, gt=0, description="spatial width at first, in coarse cells: about bilinear; published: none, a blur"
    )


class SapaConfig(Section):
    """Kernels from the likeness of the image's places to the map's cells (SAPA, gated)."""

    window: Odd = Field(5, ge=1, description="coarse cells along each axis that a fine one is averaged from; odd")
    width: int = Field(32, ge=1, description="channels of the embedding in which image and map are compared")


class ReSfuConfig(Section):
    """Kernels from learned differences between image and map, seen in one space (ReSFU)."""

    window: Odd = Field(5, ge=1, description="places along each axis, a coarse cell apart, that are averaged; odd")
    width: int = Field(32, ge=1, description="channels in which image and map are compared")
    sigma: float = Field(
        0.4, gt=0, description="spatial width at first, in coarse cells: about bilinear; published: none, a blur"
    )


class AttentionConfig(Section):
    """What upsamplers by cross attention from the image have in common."""

    width: int = Field(128, ge=16, multiple_of=16, description="channels of queries and keys")
    heads: int = Field(4, ge=1, description="attention heads; 4 × their number must divide the width")
    blocks: int = Field(2, ge=0, description="residual blocks of every small encoder")
    detail: int = Field(2, ge=1, description="image pixels seen along each side of a sharp cell")
    sigma: float | None = Field(
        0.5, gt=0, description="spatial width at first, in coarse cells: about bilinear; none, as published: a blur"
    )

    @model_validator(mode="after")
    def _divisible(self) -> AttentionConfig:
        if self.width % (4 * self.heads):
            raise ValueError(f"width {self.width} is no multiple of 4 × {self.heads} heads")
        return self


class JafarConfig(AttentionConfig):
    """Every sharp cell attends to the whole map (JAFAR)."""


class AnyUpConfig(AttentionConfig):
    """Sharp cells attend to a window; weights for any map's width (AnyUp)."""

    window: Odd = Field(7, ge=1, description="coarse cells along each axis that a sharp one attends to; odd")
    filter: Odd = Field(5, ge=1, description="coarse cells along each axis of the filters of every channel; odd")


class NafConfig(AttentionConfig):
    """Sharp cells attend to a window; weights from the image alone (NAF)."""

    width: int = Field(256, ge=16, multiple_of=16, description="channels of queries and keys")
    window: Odd = Field(9, ge=1, description="coarse cells along each axis that a sharp one attends to; odd")
    detail: int = Field(2, ge=1, description="image pixels seen along each side of a sharp cell; published: 4")


class FusionConfig(Section):
    """The transformer block that merges upsampled map and tiles by local attention."""

    heads: int = Field(16, ge=1, description="attention heads; they must divide 2 × the teacher's width")
    window: Odd = Field(7, ge=1, description="keys that a query sees along each axis; odd")
    position: Literal["alibi", "rope", "none"] = Field("alibi", description="how attention knows distances")
    layer_norm: bool = Field(True, description="LayerNorm before attention and SwiGLU (paper: on, release: off)")
    hidden: int | None = Field(None, ge=8, description="width of the SwiGLU; none: 16/3 × the teacher's width")
    layer_scale: float = Field(1e-6, gt=0, description="start of both branches; tiny: begins as the JBU alone")


class DownsamplerConfig(Section):
    """What turns the sharp map back into a low-resolution one, to be compared with what the teacher says of a view."""

    kind: Literal["attention", "simple"] = Field("attention", description="weights from the content, or one kernel")
    reach: int = Field(3, ge=0, description="sharp cells seen beyond the low-resolution cell's own, on each side")
    drop: float = Field(0.2, ge=0, lt=1, description="share of the attention's taps left out at random while training")


class ViewsConfig(Section):
    """The views of an image that must agree: one base view (shared zoom and crop) and small jitters of it."""

    jitters: int = Field(5, ge=1, description="jittered views an image and step; each costs one teacher pass")
    source_scale: float = Field(1.25, ge=1, le=4, description="size of the image that base views are cut from")
    zoom: Range = Field((1.0, 2.0), description="zoom of the base view into the image, at least 1")
    jitter_zoom: float = Field(1.05, ge=1, le=2, description="a jitter zooms by at most this factor, in or out")
    shift: float = Field(0.06, ge=0, le=0.5, description="a jitter moves by at most this share of the side")
    rotation: float = Field(5.0, ge=0, le=45, description="a jitter turns by at most so many degrees")
    perspective: Range = Field((0.01, 0.05), description="spread of a jitter's corner offsets, in shares of the side")
    flip: float = Field(0.0, ge=0, le=1, description="probability that a jitter is mirrored")

    @model_validator(mode="after")
    def _ordered(self) -> ViewsConfig:
        for name in ("zoom", "perspective"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name}: expected 0 ≤ lowest ≤ highest, got {low}, {high}")
        if self.zoom[0] < 1:
            raise ValueError(f"zoom: below 1 the view would leave the image, got {self.zoom[0]}")
        return self


class LossConfig(Section):
    """How views are compared. A term of weight 0 is not computed."""

    distance: Literal["mse", "smooth_l1"] = Field("mse", description="distance between predicted and seen features")
    uncertainty: bool = Field(True, description="learn where views cannot agree, and weigh those places down")
    uncertainty_width: int = Field(256, ge=1, description="hidden channels of the network that predicts it")
    seam_weight: float = Field(2.0, gt=0, description="weight of the two rows and columns along each seam of tiles")
    tv: float = Field(0.0, ge=0, description="weight of the total variation of the sharp map")
    crf: float = Field(0.0, ge=0, description="weight of features differing where the image looks alike")
    mmd: float = Field(0.0, ge=0, description="weight of sharp features being distributed unlike the teacher's")
    conditional: float = Field(0.0, ge=0, description="weight of what the conditional bias changes")


class LrScaleConfig(Section):
    """Learning rates of some parts, relative to the recipe's."""

    jbu: float = Field(0.2, ge=0)
    uncertainty: float = Field(0.02, ge=0)
    spectral: float = Field(0.1, ge=0, description="of the singular values that `spectral` learns")


class SharpenerConfig(Section):
    """A teacher's map → a sharper map: which upsampler, how large a factor, how it is trained."""

    upsampler: Literal[
        "featsharp", "featsharp_release", "featsharp_slim", "tile", "bilinear", "nearest", "identity", "s2",
        "featup", "carafe", "sapa", "resfu", "jafar", "anyup", "naf",
    ] = Field("featsharp", description="how the map is enlarged")
    factor: int = Field(2, ge=1, le=14, description="cells of the sharp map for one of the teacher's, along each axis")
    progressive: bool = Field(False, description="go through the factor's primes, each with its own tiles and weights")
    bias: bool = Field(True, description="learn the teacher's position-locked noise (a bias a cell) and take it away")
    conditional_bias: bool = Field(False, description="take away noise that depends on content too, by a ViT block")
    spectral: bool = Field(
        False, description="learn how much each linear layer stretches apart from its direction (published: on)"
    )
    tile_position: bool = Field(True, description="learn an embedding of which tile a feature comes from")
    max_tiles_per_call: int | None = Field(None, ge=1, description="images a teacher call; none: all; same result")
    memory_budget: Bytes | None = Field(
        None, description="bytes (or 4GiB) a teacher call, JBU, the block or attention may use for itself; same result"
    )
    max_cells_per_call: int | None = Field(
        None, ge=1, description="sharp cells a piece of cross attention; none: all at once; same result"
    )
    jbu: JbuConfig = JbuConfig()
    fusion: FusionConfig = FusionConfig()
    featup: FeatUpConfig = FeatUpConfig()
    carafe: CarafeConfig = CarafeConfig()
    sapa: SapaConfig = SapaConfig()
    resfu: ReSfuConfig = ReSfuConfig()
    jafar: JafarConfig = JafarConfig()
    anyup: AnyUpConfig = AnyUpConfig()
    naf: NafConfig = NafConfig()
    downsampler: DownsamplerConfig = DownsamplerConfig()
    views: ViewsConfig = ViewsConfig()
    losses: LossConfig = LossConfig()
    lr_scale: LrScaleConfig = LrScaleConfig()

    @model_validator(mode="after")
    def _bias_is_there(self) -> SharpenerConfig:
        if self.conditional_bias and not self.bias:
            raise ValueError("conditional_bias comes on top of bias, which is off")
        if self.losses.conditional and not self.conditional_bias:
            raise ValueError("losses.conditional weighs what conditional_bias changes, which is off")
        return self
