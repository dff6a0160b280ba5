"""A recipe's `stages`, `optim`, `loss` and `statistics`: how training goes, and the only place of its defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from radio_distill.student_config import Count, Fraction, Positive, Weight
from teachers.section import Section


class StageConfig(Section):
    """A stretch of training with its own learning-rate cycle."""

    steps: Positive
    lr: Annotated[float, Field(gt=0)] | None = Field(None, description="peak of this stage; none = optim.lr")
    warmup: Count | None = Field(None, description="steps; none = optim.warmup")
    streams: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="names of the streams that it trains on; none = all"
    )
    freeze_trunk: Count = Field(0, description="steps at its start in which only the heads learn")
    statistics: bool = Field(
        False, description="fit the teachers' statistics anew (the first stage always does); best with freeze_trunk"
    )


class OptimConfig(Section):
    """The optimiser and its schedule (cosine a stage, after a linear warm-up)."""

    name: Literal["adamw", "nadam", "lamb"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Weight = Field(0.02, description="not on positions, tokens, norms and biases")
    warmup: Count = Field(100, description="steps from 0.01 of lr to lr")
    final_lr: Fraction = Field(0.0, description="share of the peak that the cosine ends at")
    clip: Weight = Field(1.0, description="largest gradient norm; 0 = no clipping")
    accumulate: Positive = Field(1, description="batches of every stream a step")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="decay of the averaged weights that are exported; none = no average"
    )


class StatisticsConfig(Section):
    """The teacher statistics behind PHI-S and the balanced summary loss."""

    batches: Positive = Field(100, description="batches of the stage's first stream, on every rank, before it begins")
    mode: Literal["before", "running"] = Field(
        "before", description="stop there, or go on learning them in the first steps of the stage, as PHI-S did"
    )
    steps: Positive = Field(3000, description="running: steps of the stage that are learnt from")
    refresh: Positive = Field(100, description="running: steps between two normalisers")
    cache: str | None = Field(
        "~/.cache/radio-distill/statistics",
        description="folder, keyed by encoder identity; none = measured at every start",
    )


class MesaConfig(Section):
    """SE-MESA: the student's features should be those of its own average (optim.ema) on another crop."""

    weight: Weight = Field(0.0, description="0 = off")
    start: Count = Field(0, description="first step; sensibly after the warm-up")


class LossConfig(Section):
    """What is compared, and how losses of teachers and streams become one number."""

    feature: Literal["mse", "hybrid", "cosine", "smooth_l1"] = Field(
        "mse", description="of feature maps; hybrid = 0.9 cosine + 0.1 smooth L1 (AM-RADIO)"
    )
    normalise: Literal["phi_s", "global", "none"] = Field(
        "phi_s", description="space of the feature loss: PHI-S, mean and one deviation, or the teacher's own"
    )
    summary: Literal["cosine", "angle", "balanced"] = Field(
        "cosine", description="1 − cos, the squared angle, or that over the teacher's own dispersion (C-RADIOv4)"
    )
    shift: Weight = Field(
        0.0, description="shift-equivariant features: deviation, in patches, of each network's own shift; 0 = off"
    )
    mesa: MesaConfig = MesaConfig()
    relational: Weight = Field(0.0, description="weight of the loss between pairwise geometries of a batch's summaries")
    balance: Literal["none", "adaloss", "uncertainty"] = Field(
        "none", description="adaptive weights of the terms: 1 / running loss, or an uncertainty that the student learns"
    )
    teacher_drop: Fraction = Field(
        0.0, description="chance, an image, that a teacher is dropped unless its loss is the largest (UNIC)"
    )
    reduce: Literal["sample_mean", "stream_mean"] | dict[str, float] = Field(
        "stream_mean", description="every sample counts the same, every stream does, or a weight a stream"
    )
    grid: Literal["max", "teacher", "student"] = Field(
        "max", description="where the grids of student and teacher disagree: which one both are resized to"
    )
