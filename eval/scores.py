"""The typed result file: one JSON a (model, task, seed), written whole or not at all, read strictly.

A score is done when a file says so under the same key: identities, task, protocol version, settings, data, seed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from radio_distill.documents import Section
from teachers.errors import UserError

FORMAT = 1
PACKAGES = (
    "torch", "torchvision", "torchmetrics", "timm", "open_clip_torch", "transformers", "numpy", "scipy", "scikit-learn",
    "scikit-image", "pycocotools", "pillow",
)  # fmt: skip
Finite = Annotated[float, Field(allow_inf_nan=False)]


class MetricScore(Section):
    """One figure, with all that is needed to read it."""

    value: Finite
    direction: Literal["higher", "lower"]
    unit: str = Field(description="%, or empty for a ratio")
    n: int = Field(description="test pictures (or captions) behind it")
    chance: Finite | None = Field(None, description="what knowing nothing scores")
    counts: bool = Field(True, description="whether it enters Δm%")
    resamples: list[Finite] = Field(default_factory=list, description="on bootstrap resamples of the test pictures")
    error: Finite | None = Field(
        None, ge=0, description="standard error, in the value's unit, where no resamples can be had"
    )

    @model_serializer(mode="wrap")
    def _without_an_empty_error(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Files of figures that have resamples stay as they were before there was `error`."""
        return {key: value for key, value in plain(self).items() if key != "error" or value is not None}


class Score(Section):
    """What one task found for one model and seed: metrics, or why it does not apply, or the error that stopped it."""

    format: Literal[1] = FORMAT
    model: str
    replicate: int
    identity: str
    partners: list[str] = Field(description="identities of other encoders that the figures depend on")
    task: str = Field(description="its name in the recipe")
    kind: str = Field(description="the task module")
    group: str
    counts: bool = Field(True, description="whether its task enters Δm%: of one that failed no metric says it")
    protocol: int = Field(description="version: figures of different versions cannot be compared")
    data: str
    data_identity: str
    settings: dict[str, Any]
    seed: int
    seeded: bool = Field(description="False: the figure does not depend on the seed")
    metrics: dict[str, MetricScore] = Field(default_factory=dict)
    facts: dict[str, Any] = Field(default_factory=dict, description="size used, head used, and the like")
    not_applicable: str | None = None
    error: str | None = None
    commit: str
    libraries: dict[str, str]
    date: str
    seconds: float

    @property
    def key(self) -> str:
        """What makes this score the one that was asked for."""
        identities = [self.identity, *self.partners]
        return score_key(identities, self.task, self.protocol, self.settings, self.data_identity, self.seed)

    @property
    def done(self) -> bool:
        """Whether there is no reason to run it again."""
        return self.error is None


def score_key(
    identities: list[str], task: str, protocol: int, settings: dict[str, Any], data_identity: str, seed: int
) -> str:
    """A hash of everything that a figure depends on."""
    text = json.dumps([identities, task, protocol, settings, data_identity, seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def score_file(folder: Path, model: str, identity: str, task: str, seed: int) -> Path:
    """Where the score of one (model, task, seed) stands."""
    slug = re.sub(r"[^\w.-]+", "-", model).strip("-.") or "model"
    return folder / f"{slug}-{identity[:8]}" / f"{task}.seed{seed}.json"


def save(score: Score, file: Path) -> None:
    """Write a score; one with another key that stood there is kept beside it, as `.before-DATE`."""
    if file.exists() and (old := load(file)).key != score.key and old.done:
        os.replace(file, _kept(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    text = re.sub(r"\[\n[-\d.,\se+]*\]", lambda found: " ".join(found[0].split()), score.model_dump_json(indent=1))
    temporary.write_text(text + "\n", encoding="utf-8")  # lists of numbers on one line
    os.replace(temporary, file)


def _kept(file: Path) -> Path:
    """A name that no file has for what stands at `file`: two changes may fall in one second."""
    plain = f"{file.name}.before-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (plain if number == 1 else f"{plain}-{number}" for number in itertools.count(1))
    return next(kept for kept in map(file.with_name, names) if not kept.exists())


def load(file: Path) -> Score:
    """Read one score; raises `UserError` for a file that is not one."""
    try:
        return Score.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (pydantic.ValidationError, UnicodeDecodeError) as error:
        first = error.errors()[0] if isinstance(error, pydantic.ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{file} is not a score file: {where}: {first['msg']}",
            expected=f"a file that python -m eval wrote (format {FORMAT})",
            todo="remove it, and the same command scores it again",
        ) from None


def load_folder(folder: Path) -> list[Score]:
    """All scores below `folder`, checked against each other."""
    scores = [load(file) for file in sorted(folder.rglob("*.json"))]
    check_protocols(scores)
    return scores


def check_protocols(scores: Iterable[Score]) -> None:
    """Raise `UserError` where figures under one task name come from different protocols: they cannot be compared."""
    seen: dict[str, Score] = {}
    for score in scores:
        first = seen.setdefault(score.task, score)
        if (score.kind, score.protocol) != (first.kind, first.protocol):
            raise UserError(
                f"task {score.task!r} was scored by {first.kind} protocol {first.protocol} for {first.model} "
                f"and by {score.kind} protocol {score.protocol} for {score.model}",
                expected="one protocol under one name",
                todo="score both again with this version, or move one set of files elsewhere",
            )


def show(value: float, unit: str) -> str:
    """A figure as tables print it: `52.3%`, `0.712`."""
    return f"{value:.1f}%" if unit == "%" else f"{value:.3f}{unit}"


def libraries(device: str = "cpu") -> dict[str, str]:
    """What figures can depend on besides the code: versions of packages and of Python, the machine, the device."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "device": device}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
