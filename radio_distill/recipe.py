"""A recipe file and its overrides → a `Recipe`: the schema, and the only place where training defaults stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from pydantic import BeforeValidator, Field, field_validator, model_validator

from featsharp.config import SharpenerConfig
from radio_distill import documents
from radio_distill.student_config import Count, Fraction, HeadConfig, Positive, StudentConfig, Weight
from radio_distill.training_config import LossConfig, OptimConfig, StageConfig, StatisticsConfig
from teachers.section import Section

HELP = "python radio_distill/train.py --help lists every key"


def _as_size(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_word(value: Any) -> Any:
    return "off" if value is False else value  # YAML reads a bare off as false


SizeKey = Annotated[tuple[Positive, Positive], BeforeValidator(_as_size)]  # 224, or [height, width]


class TeacherConfig(Section):
    """A frozen encoder, and how its feature map is sharpened in the streams that ask for it."""

    encoder: str = Field(description="a name of the catalogue: python -m teachers")
    weights: str | None = Field(None, description="file, folder, published tag, or random; none = the catalogue's")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the encoder (image_size, layer, ...)")
    sharpen: str = Field("none", description="none, bilinear, tile, s2, or the run folder of a trained sharpener")
    factor: Positive = Field(2, description="how much finer the untrained ones make the grid")
    fit: Literal["resize", "pad", "mosaic"] = Field(
        "resize",
        description="a fixed-size teacher sees smaller images enlarged, in a corner of its canvas, or many in it",
    )
    summary_weight: Weight = 1.0
    feature_weight: Weight = 1.0
    head: HeadConfig = HeadConfig()


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
    size: list[SizeKey] = Field(
        description="student sizes in pixels; one is drawn a batch, the same on all ranks (task: sharpen: not used, "
        "its views are factor times what the teacher sees)"
    )
    sharpen: bool = Field(False, description="whether teachers with a sharpener use it in this stream")
    teachers: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="names of the teachers of this stream; none = all, which keeps a student from mode switching"
    )
    letterbox: bool = Field(False, description="fit crops into the size at their own aspect and mask the padding")
    workers: Count = Field(0, description="processes that read and decode; 0 = the trainer's own")
    shuffle: Positive = Field(1000, description="samples a shuffle block")
    scale: tuple[float, float] = Field(
        (0.5, 1.0), description="share of the image's area that a crop takes; with loss.shift, its windows take less"
    )
    ratio: tuple[float, float] = Field(
        (0.75, 1.3333), description="aspect of a crop relative to the student's size; with letterbox, to the picture's"
    )
    flip: bool = Field(True, description="mirror half of the crops")
    min_side: Count = Field(0, description="leave out pictures with a shorter side")
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


class CacheConfig(Section):
    """Teachers' features kept on disk: for small data, where the same crops come again."""

    folder: str | None = Field(None, description="where; none = no cache")
    max_gib: Annotated[float, Field(gt=0)] = Field(20.0, description="GiB past which nothing more is written")


class OutputConfig(Section):
    """What a run writes, and how often (in steps; 0 = only at the end)."""

    log: Positive = Field(10, description="a line on the console (the journal has every step)")
    save: Count = Field(1000, description="a checkpoint, from which the same command resumes")
    keep: Positive = Field(2, description="checkpoints kept")
    heldout: Count = Field(1000, description="loss on held-out pictures")
    pictures: Count = Field(5000, description="PCA pictures")
    tensorboard: bool = Field(False, description="mirror the journal into the run folder's tensorboard/")
    wandb: Annotated[Literal["off", "offline", "online"], BeforeValidator(_as_word)] = Field(
        "off", description="mirror the journal into Weights & Biases"
    )
    wandb_project: str = "radio-distill"


class Recipe(Section):
    """A whole run."""

    task: Literal["distill", "sharpen"] = Field(description="train a student, or a teacher's sharpener")
    run: str = Field(min_length=1, description="the run folder: made here, resumed from here")
    seed: int = 0
    teachers: Annotated[dict[str, TeacherConfig], Field(min_length=1)] = Field(description="by name")
    streams: Annotated[dict[str, StreamConfig], Field(min_length=1)] = Field(description="by name")
    heldout: HeldoutConfig | None = None
    student: StudentConfig | None = Field(None, description="task: distill")
    sharpener: SharpenerConfig | None = Field(None, description="task: sharpen")
    stages: Annotated[list[StageConfig], Field(min_length=1)]
    optim: OptimConfig = OptimConfig()
    cache: CacheConfig = CacheConfig()
    loss: LossConfig = LossConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    output: OutputConfig = OutputConfig()
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of the student; parameters stay fp32")
    teacher_precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of the frozen teachers")
    threads: Positive | None = Field(None, description="CPU threads a rank; none = cores / ranks")
    compile: bool = Field(False, description="torch.compile the student (slow to start, no gain on a CPU)")
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="passed to DeepSpeed; see its configuration")
    allow_pipe: bool = Field(
        False,
        description="run the shell commands of pipe: shards; not needed for those that the command line itself names",
    )
    # For the launcher and for the plan; neither changes what is trained.
    dry_run: bool = Field(False, description="print the plan and stop")
    rehearse: bool = Field(False, description="run a step of every stage at true size without weights, data or memory")
    restart: bool = Field(False, description="move an existing run folder aside and start again")

    def pipes(self) -> list[tuple[str, str]]:
        """The keys and texts of all shards that are shell commands."""
        named = {f"streams.{name}.shards": stream.shards for name, stream in self.streams.items()}
        if self.heldout:
            named["heldout.shards"] = self.heldout.shards
        return [(key, text) for key, shards in named.items() for text in _texts(shards) if text.startswith("pipe:")]

    @field_validator("teachers", "streams")
    @classmethod
    def _plain_names(cls, value: dict) -> dict:
        bad = [name for name in value if not name.replace("_", "").replace("-", "").isalnum()]
        if bad:
            raise ValueError(f"names may hold letters, digits, - and _ only: {', '.join(bad)}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        rows = list(_inconsistencies(self))
        if rows:
            raise documents.Mistakes(rows)
        return self

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[int, int]:
        """The stage that optimiser step `step` (from 0) falls in, and the step inside it; past the end, the last."""
        for number, stage in enumerate(self.stages):
            if step < stage.steps:
                return number, step
            step -= stage.steps
        return len(self.stages) - 1, self.stages[-1].steps

    def streams_at(self, step: int) -> dict[str, StreamConfig]:
        """The streams that optimiser step `step` (from 0) takes batches from, in the recipe's order."""
        return self.streams_of(self.stage_at(step)[0])

    def streams_of(self, stage: int) -> dict[str, StreamConfig]:
        """The streams of a stage (counted from 0), in the recipe's order."""
        wanted = self.stages[stage].streams
        return {name: stream for name, stream in self.streams.items() if wanted is None or name in wanted}

    def trunk_frozen(self, step: int) -> bool:
        """Whether only the heads learn in optimiser step `step` (from 0)."""
        number, inside = self.stage_at(step)
        return inside < self.stages[number].freeze_trunk

    def teachers_of(self, stream: str) -> list[str]:
        """The names of a stream's teachers, in the recipe's order."""
        wanted = self.streams[stream].teachers
        return [name for name in self.teachers if wanted is None or name in wanted]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run).expanduser()


def _inconsistencies(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What sections say against each other: (key path, sentence)."""
    wanted, other = {"distill": ("student", "sharpener"), "sharpen": ("sharpener", "student")}[recipe.task]
    if dict(recipe)[other] is not None:
        yield other, f"task: {recipe.task} takes no '{other}' section"
    if dict(recipe)[wanted] is None:
        yield wanted, f"task: {recipe.task} needs a '{wanted}' section"
    if recipe.task == "sharpen":
        yield from _sharpening(recipe)
    if isinstance(recipe.loss.reduce, dict) and set(recipe.loss.reduce) != set(recipe.streams):
        yield "loss.reduce", f"must weigh exactly the streams {', '.join(recipe.streams)}"
    yield from _names(recipe)
    if recipe.loss.mesa.weight and recipe.optim.ema is None:
        yield "loss.mesa", "compares with averaged weights: set optim.ema, such as 0.9996"
    if recipe.student:
        yield from _student_sizes(recipe.student, recipe.streams)


def _sharpening(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """One teacher, one stream, and nothing that only a student knows."""
    if len(recipe.teachers) != 1 or len(recipe.streams) != 1:
        yield "task", "sharpen takes exactly one teacher and one stream"
    given = {
        "loss": recipe.loss != LossConfig(),
        "cache.folder": recipe.cache.folder is not None,
        "optim.ema": recipe.optim.ema is not None,
        "stages.freeze_trunk": any(stage.freeze_trunk for stage in recipe.stages),
        "streams.letterbox": any(stream.letterbox for stream in recipe.streams.values()),
    }
    for key, is_given in given.items():
        if is_given:
            yield key, "is for task: distill; a sharpener would not heed it"


def _names(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Streams of stages and teachers of streams must be there, and every one of them used."""
    unknown = False  # a misspelt name leaves the right one unused: that is one mistake
    for number, stage in enumerate(recipe.stages):
        for name in stage.streams or ():
            if name not in recipe.streams:
                unknown = True
                yield f"stages.{number}.streams", f"no stream {name!r} among {', '.join(recipe.streams)}"
    for stream, config in recipe.streams.items():
        for name in config.teachers or ():
            if name not in recipe.teachers:
                unknown = True
                yield f"streams.{stream}.teachers", f"no teacher {name!r} among {', '.join(recipe.teachers)}"
    if unknown:
        return
    for stream in recipe.streams:
        if all(stage.streams is not None and stream not in stage.streams for stage in recipe.stages):
            yield f"streams.{stream}", "is in no stage"
    used = {name for stream in recipe.streams for name in recipe.teachers_of(stream)}
    for name in recipe.teachers:
        if name not in used:
            yield f"teachers.{name}", "is in no stream"


def _student_sizes(student: StudentConfig, streams: dict[str, StreamConfig]) -> Iterator[tuple[str, str]]:
    for name, stream in streams.items():
        bad = [size for size in stream.size if any(n % student.patch for n in size) or max(size) > student.cpe_max]
        if bad:
            sizes = ", ".join(str(list(size)) for size in bad)
            yield f"streams.{name}.size", (
                f"{sizes} does not suit the student: use multiples of student.patch {student.patch}, "
                f"at most student.cpe_max {student.cpe_max}"
            )
    grids = [(h // student.patch, w // student.patch) for stream in streams.values() for h, w in stream.size]
    for window in filter(None, student.windows):
        if not any(h % window == w % window == 0 for h, w in grids):
            yield "student.windows", f"{window} divides no stream's grid"


# Keys that may differ between the start of a run and its continuation: they change what is written, not what is learnt.
def _typed(overrides: Sequence[str]) -> set[str]:
    """All texts that stand in overrides, whole."""
    values = [OmegaConf.to_container(OmegaConf.from_dotlist([text]), resolve=False) for text in overrides]
    return set(_texts(values))


def _texts(shards: Any) -> Iterator[str]:
    """All that a key `shards` names."""
    if isinstance(shards, str):
        yield shards
    elif isinstance(shards, MixConfig):
        yield from _texts(shards.shards)
    else:
        inner = shards.values() if isinstance(shards, dict) else shards if isinstance(shards, list) else ()
        for one in inner:
            yield from _texts(one)


FREE_KEYS = ("dry_run", "rehearse", "restart", "output", "threads", "run", "allow_pipe")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at `path`, overrides applied and everything checked."""
    recipe = documents.load(path, Recipe, overrides, hint=HELP)
    pipes = [text for _, text in recipe.pipes()]
    if pipes and set(pipes) <= _typed(overrides):
        recipe = recipe.model_copy(update={"allow_pipe": True})  # whoever typed a command may run it
    return recipe
