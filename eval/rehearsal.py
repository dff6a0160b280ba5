"""A data root of rendered stand-ins (`python -m eval.tabletop layouts`) → an evaluation that only rehearses.

The stand-ins' root holds `rehearsal.json`. Where it is there, the suite runs the same code on the same recipe, with
real readers, picture sizes and tasks. But probes are narrow and take few, large steps of few pictures, counts that the
recipe expects are told and not enforced, a student that cannot take a size is shown the largest that it takes, and
SAM's decoder is the root's own, of random weights. All of this is in the scores' settings: no score of a rehearsal can
pass for one of the real data.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field, ValidationError

from eval.config import EvalRecipe
from eval.task_settings import TaskSettings
from teachers.errors import UserError
from teachers.section import Section

MARKER = "rehearsal.json"
WORDS = (
    "REHEARSAL on rendered stand-ins, not on the data sets that the recipe names. It shows that every task runs; no "
    "figure says anything about a model."
)


class Rehearsal(Section):
    """What `rehearsal.json` says."""

    what: str = Field(description="in words, for whoever finds the folder")
    command: str = Field(description="that wrote it")
    version: int = Field(description="of the writer: the same command of another version writes other files")
    seed: int
    scenes: int
    steps: int = Field(ge=1, description="of a probe's training, at most (of a linear classifier's solver, too)")
    batch: int = Field(ge=1, description="pictures a step of a probe's training, at most")
    hidden: int = Field(ge=1, description="width of a probe's hidden layers, at most")
    lr: float = Field(gt=0, description="learning rate of a probe's training, at least: few steps must lead somewhere")
    sam: str | None = Field(description="folder of a SAM of random weights, in the data root; none: it has none")


def read(data_root: Path) -> Rehearsal | None:
    """What the marker of a data root says; None where there is none. Raises `UserError` for a damaged one."""
    file = data_root / MARKER
    if not file.is_file():
        return None
    try:
        return Rehearsal.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise UserError(
            f"{file} cannot be read: {error}", expected="the marker that python -m eval.tabletop layouts writes",
            todo="write the folder again, under another name",
        ) from None  # fmt: skip


def shortened(recipe: EvalRecipe, rehearsal: Rehearsal, data_root: Path) -> EvalRecipe:
    """The recipe as it is rehearsed."""
    tasks = {name: _shortened(task, rehearsal, data_root) for name, task in recipe.task_settings.items()}
    return recipe.model_copy(update={"tasks": recipe.tasks.model_copy(update=tasks)})


def _shortened(task: TaskSettings, rehearsal: Rehearsal, data_root: Path) -> TaskSettings:
    keys = [key for key in ("steps", "batch", "hidden", "lr") if hasattr(task, key)]
    if keys:
        bounds = {key: max if key == "lr" else min for key in keys}
        changes = {key: bound(getattr(task, key), getattr(rehearsal, key)) for key, bound in bounds.items()}
        return task.model_copy(update=changes)
    if task.task == "sam" and rehearsal.sam is not None:
        return task.model_copy(update={"weights": str(data_root / rehearsal.sam)})
    return task


def settings(rehearsal: Rehearsal) -> dict[str, dict[str, int]]:
    """What a rehearsal adds to the settings of a score."""
    return {"rehearsal": {"seed": rehearsal.seed, "scenes": rehearsal.scenes, "version": rehearsal.version}}


def limits(rehearsal: Rehearsal) -> str:
    """What is not as on the real data, in words."""
    sam = "" if rehearsal.sam is None else "; SAM's decoder has random weights"
    return (
        f"seed {rehearsal.seed}, --scenes {rehearsal.scenes}; probes take at most {rehearsal.steps} steps of "
        f"{rehearsal.batch} pictures and are at most {rehearsal.hidden} wide; expected counts are not enforced; sizes "
        f"that are too large for a model are made smaller{sam}"
    )
