"""The typed result file: one JSON a (model, task, seed), written whole or not at all, read strictly.

A score is done when a file says so under the same key: identities, task, protocol version, settings, data, seed. What
would put no figures in the place of some, a failure or a task that does not apply, stands beside them as `.unscored`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from eval.kept import all_kept, keep, put_back
from teachers.errors import UserError
from teachers.section import Section

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


class Score(Section):
    """What one task found for one model and seed: metrics, or why it does not apply, or the error that stopped it."""

    format: Literal[1] = FORMAT
    model: str
    replicate: int
    trained: int | None = Field(None, description="the seed of the model's training, where it is known")
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


def save(score: Score, file: Path) -> Path:
    """Write a score and return where it stands now: at `file`, or beside what it must not displace (`_worth`).

    A finished one with another key that stood at `file` is kept.
    """
    old = load(file) if file.exists() else None
    if old and _worth(score) < _worth(old):
        return _write(score, _unscored(file))
    if old and old.done and old.key != score.key:
        keep(file)
    _write(score, file)
    _unscored(file).unlink(missing_ok=True)
    return file


def recall(places: Sequence[Path], key: str) -> Score | None:
    """The finished score with this key: at one of `places`, or kept beside one, in whose place it then stands again."""
    for place in places:
        if place.exists() and (score := load(place)).done and score.key == key:
            _forget_failures(places)
            return score
    for place in places:
        for kept in all_kept(place):
            if (score := _readable(kept)) and score.done and score.key == key:
                _reinstate(score, kept, place)
                _forget_failures(places)
                return score
    return None


def _worth(score: Score) -> tuple[bool, bool]:
    """Figures are worth more than that a task does not apply, and that more than a failure."""
    return score.done, bool(score.metrics)


def _reinstate(score: Score, kept: Path, file: Path) -> None:
    """Put a kept score in its place again, unless what stands there is worth more; that is kept in turn."""
    old = load(file) if file.exists() else None
    if old and _worth(score) < _worth(old):
        return
    if old and old.done:
        keep(file)
    put_back(kept, file)


def _forget_failures(places: Sequence[Path]) -> None:
    """Remove what says of a score that is there now that it could not be had."""
    for place in places:
        _unscored(place).unlink(missing_ok=True)
        if len(places) > 1 and place.exists() and not load(place).done:  # under another name of the model
            place.unlink()


def _unscored(file: Path) -> Path:
    return file.with_name(f"{file.name}.unscored")


def _write(score: Score, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    text = re.sub(r"\[\n[-\d.,\se+]*\]", lambda found: " ".join(found[0].split()), score.model_dump_json(indent=1))
    temporary.write_text(text + "\n", encoding="utf-8")  # lists of numbers on one line
    os.replace(temporary, file)
    return file


def _readable(kept: Path) -> Score | None:
    """A kept score; None for one that is damaged, or of another format: nobody asked for it."""
    try:
        return load(kept)
    except UserError:
        return None


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
