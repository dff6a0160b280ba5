"""A recipe file and its overrides → a `Recipe`: the schema, and the only place where training defaults stand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from featsharp.config import SharpenerConfig
from radio_distill import documents
from radio_distill.documents import Section

HELP = "python radio_distill/train.py --help lists every key"


def _as_size(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_word(value: Any) -> Any:
    return "off" if value is False else value  # YAML reads a bare off as false


SizeKey = Annotated[tuple[int, int], BeforeValidator(_as_size)]  # 224, or [height, width]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]

# width, depth, heads (spec: RADIO's sizes; the tiny ones are for a laptop's CPU)
ARCHITECTURES: dict[str, tuple[int, int, int]] = {
    "vit_nano": (128, 4, 4),
    "vit_micro": (192, 6, 3),
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_so400m": (1152, 27, 16),
    "vit_huge": (1280, 32, 16),
}


class HeadConfig(Section):
    """Adaptor heads: one MLP a teacher for the summary, one for the features (RADIO's `mlp_version` v2)."""

    hidden: Positive | None = Field(None, description="width inside a head; none = the widest teacher's")
    blocks: Annotated[int, Field(ge=0)] = Field(0, description="residual blocks between the first and last layer")


class StudentConfig(Section):
    """The ViT that is trained."""

    arch: str = Field("vit_base", description="one of " + ", ".join(ARCHITECTURES))
    width: Positive | None = Field(None, description="overrides the architecture's")
    depth: Positive | None = Field(None, description="overrides the architecture's")
    num_heads: Positive | None = Field(None, description="overrides the architecture's")
    patch: Positive = Field(16, description="pixels a patch")
    stem: Literal["linear", "conv"] = Field(
        "linear", description="how patches are embedded: one linear layer, as in RADIO, or a few convolutions"
    )
    cpe_max: Positive = Field(2048, description="pixels that the position table spans; the largest size it can take")
    registers: Annotated[int, Field(ge=0)] = Field(4, description="tokens that carry no target")
    position_dropout: Fraction = Field(0.1, description="chance a training sample sees no positions")
    drop_path: Fraction = Field(0.0, description="stochastic depth, rising linearly to this in the last block")
    activation_checkpointing: bool = Field(False, description="recompute blocks in the backward pass: less memory")
    heads: HeadConfig = HeadConfig()

    @field_validator("arch")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {value!r}: use one of {', '.join(ARCHITECTURES)}")
        return value

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width, depth and attention heads, overrides applied."""
        width, depth, heads = ARCHITECTURES[self.arch]
        return self.width or width, self.depth or depth, self.num_heads or heads

    @model_validator(mode="after")
    def _whole(self) -> StudentConfig:
        width, _, heads = self.shape
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {heads}")
        if self.cpe_max % self.patch:
            raise ValueError(f"cpe_max {self.cpe_max} is not a multiple of patch {self.patch}")
        return self


class TeacherConfig(Section):
    """A frozen encoder, and how its feature map is sharpened in the streams that ask for it."""

    encoder: str = Field(description="a name of the catalogue: python -m teachers")
    weights: str | None = Field(None, description="file, folder, published tag, or random; none = the catalogue's")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the encoder (image_size, layer, ...)")
    sharpen: str = Field("none", description="none, bilinear, tile, s2, or the run folder of a trained sharpener")
    factor: Positive = Field(2, description="how much finer the untrained ones make the grid")
    summary_weight: Annotated[float, Field(ge=0)] = 1.0
    feature_weight: Annotated[float, Field(ge=0)] = 1.0


class MixConfig(Section):
    """One source of a weighted mix."""

    shards: str | list[str]
    weight: Annotated[float, Field(gt=0)] = 1.0


class StreamConfig(Section):
    """One of the partitions: an optimiser step takes a micro-batch from every stream."""

    shards: str | list[str] | dict[str, MixConfig] = Field(
        description="paths, globs, brace ranges, s3:// or pipe: addresses of tar shards, or a weighted mix of them"
    )
    batch: Positive = Field(description="images a rank and step")
    size: list[SizeKey] = Field(description="student sizes in pixels; one is drawn a batch, the same on all ranks")
    sharpen: bool = Field(False, description="whether teachers with a sharpener use it in this stream")
    workers: Annotated[int, Field(ge=0)] = Field(0, description="processes that read and decode; 0 = the trainer's own")
    shuffle: Positive = Field(1000, description="samples a shuffle block")
    scale: tuple[float, float] = Field((0.5, 1.0), description="share of the image's area that a crop takes")
    ratio: tuple[float, float] = Field((0.75, 1.3333), description="aspect of a crop relative to the student's size")
    flip: bool = Field(True, description="mirror half of the crops")
    min_side: Annotated[int, Field(ge=0)] = Field(0, description="leave out pictures with a shorter side")
    max_bad: Fraction = Field(0.05, description="share of unreadable samples past which the run stops")

    @field_validator("size", mode="before")
    @classmethod
    def _one_size(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("size")
    @classmethod
    def _some_size(cls, value: list) -> list:
        if not value:
            raise ValueError("needs at least one size")
        return value

    @field_validator("scale", "ratio")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError(f"expected 0 < low <= high, got {list(value)}")
        return value


class HeldoutConfig(Section):
    """Pictures that training never sees: their loss is label-free, so every run can watch it."""

    shards: str | list[str]
    samples: Positive = Field(200, description="pictures used, the first ones of the shards")
    batch: Positive = Field(32, description="pictures at once")


class StageConfig(Section):
    """A stretch of training with its own learning-rate cycle."""

    steps: Positive
    lr: Annotated[float, Field(gt=0)] | None = Field(None, description="peak of this stage; none = optim.lr")
    warmup: Annotated[int, Field(ge=0)] | None = Field(None, description="steps; none = optim.warmup")


class OptimConfig(Section):
    """The optimiser and its schedule (cosine a stage, after a linear warm-up)."""

    name: Literal["adamw", "nadam"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.02, description="not on positions, tokens, norms and biases")
    warmup: Annotated[int, Field(ge=0)] = Field(100, description="steps from 0.01 of lr to lr")
    final_lr: Fraction = Field(0.0, description="share of the peak that the cosine ends at")
    clip: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0 = no clipping")


class StatisticsConfig(Section):
    """The teacher statistics behind PHI-S, fitted before the first step."""

    batches: Positive = Field(100, description="batches of the first stream, on every rank")
    cache: str = Field("~/.cache/radio-distill/statistics", description="folder, keyed by encoder identity")


class LossConfig(Section):
    """How losses of teachers and streams become one number."""

    reduce: Literal["sample_mean", "stream_mean"] | dict[str, float] = Field(
        "stream_mean", description="every sample counts the same, every stream does, or a weight a stream"
    )
    grid: Literal["max", "teacher", "student"] = Field(
        "max", description="where the grids of student and teacher disagree: which one both are resized to"
    )


class OutputConfig(Section):
    """What a run writes, and how often (in steps; 0 = only at the end)."""

    log: Positive = Field(10, description="a line on the console (the journal has every step)")
    save: Annotated[int, Field(ge=0)] = Field(1000, description="a checkpoint, from which the same command resumes")
    keep: Positive = Field(2, description="checkpoints kept")
    heldout: Annotated[int, Field(ge=0)] = Field(1000, description="loss on held-out pictures")
    pictures: Annotated[int, Field(ge=0)] = Field(5000, description="PCA pictures")
    tensorboard: bool = Field(False, description="mirror the journal into the run folder's tensorboard/")
    wandb: Annotated[Literal["off", "offline", "online"], BeforeValidator(_as_word)] = Field(
        "off", description="mirror the journal into Weights & Biases"
    )
    wandb_project: str = "radio-distill"


class Recipe(Section):
    """A whole run."""

    task: Literal["distill", "sharpen"] = Field(description="train a student, or a teacher's sharpener")
    run: str = Field(description="the run folder: made here, resumed from here")
    seed: int = 0
    teachers: Annotated[dict[str, TeacherConfig], Field(min_length=1)] = Field(description="by name")
    streams: Annotated[dict[str, StreamConfig], Field(min_length=1)] = Field(description="by name")
    heldout: HeldoutConfig | None = None
    student: StudentConfig | None = Field(None, description="task: distill")
    sharpener: SharpenerConfig | None = Field(None, description="task: sharpen")
    stages: Annotated[list[StageConfig], Field(min_length=1)]
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    output: OutputConfig = OutputConfig()
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of the student; parameters stay fp32")
    teacher_precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of the frozen teachers")
    threads: Positive | None = Field(None, description="CPU threads a rank; none = cores / ranks")
    compile: bool = Field(False, description="torch.compile the student (slow to start, no gain on a CPU)")
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="passed to DeepSpeed; see its configuration")
    # For the launcher and for the plan; neither changes what is trained.
    dry_run: bool = Field(False, description="print the plan and stop")
    restart: bool = Field(False, description="move an existing run folder aside and start again")

    @field_validator("teachers", "streams")
    @classmethod
    def _plain_names(cls, value: dict) -> dict:
        bad = [name for name in value if not name.replace("_", "").replace("-", "").isalnum()]
        if bad:
            raise ValueError(f"names may hold letters, digits, - and _ only: {', '.join(bad)}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        wanted = {"distill": "student", "sharpen": "sharpener"}[self.task]
        other = "sharpener" if wanted == "student" else "student"
        if self.model_fields_set >= {other} and dict(self)[other] is not None:
            raise ValueError(f"task: {self.task} takes no '{other}' section")
        if dict(self)[wanted] is None:
            raise ValueError(f"task: {self.task} needs a '{wanted}' section")
        if self.task == "sharpen" and (len(self.teachers) != 1 or len(self.streams) != 1):
            raise ValueError("task: sharpen takes exactly one teacher and one stream")
        if isinstance(self.loss.reduce, dict) and set(self.loss.reduce) != set(self.streams):
            raise ValueError(f"loss.reduce must weigh exactly the streams {', '.join(self.streams)}")
        if self.student:
            _check_student_sizes(self.student, self.streams)
        return self

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run).expanduser()


def _check_student_sizes(student: StudentConfig, streams: dict[str, StreamConfig]) -> None:
    for name, stream in streams.items():
        for size in stream.size:
            if size[0] % student.patch or size[1] % student.patch or max(size) > student.cpe_max:
                raise ValueError(
                    f"streams.{name}.size {list(size)} does not suit the student: "
                    f"use multiples of patch {student.patch}, at most cpe_max {student.cpe_max}"
                )


# Keys that may differ between the start of a run and its continuation: they change what is written, not what is learnt.
FREE_KEYS = ("dry_run", "restart", "output", "threads", "run")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at `path`, overrides applied and everything checked."""
    return documents.load(path, Recipe, overrides, hint=HELP)
