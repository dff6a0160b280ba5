"""Run folders of trained sharpeners → what it takes to judge them: teacher, adapter, downsampler, held-out pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featsharp import adapter as adapters
from featsharp import sharpener
from featsharp.config import SharpenerConfig, ViewsConfig
from featsharp.downsample import build_downsampler
from featsharp.task import SharpenObjective
from teachers.errors import UserError
from teachers.features import Encoder

SEED = re.compile(r"[-_.]?(seed)?[-_]?\d+$")  # at the end of a run's name: x-seed1, x_1


@dataclass(frozen=True)
class Run:
    """A trained sharpener on the disk; nothing of it is loaded yet."""

    label: str
    path: Path
    export: Path  # the folder of the adapter
    teacher: dict[str, Any]  # as the adapter's config names it
    config: SharpenerConfig
    recipe: dict[str, Any]  # as the run folder keeps it; empty for an export alone

    @property
    def identity(self) -> str:
        """The teacher's."""
        return self.teacher["identity"]

    @property
    def heldout(self) -> dict[str, Any] | None:
        """The recipe's section: shards, samples."""
        return self.recipe.get("heldout")

    @property
    def series(self) -> tuple[str, str]:
        """Equal for runs that differ by their seed alone: the label without a number at its end, and the recipe."""
        same = {key: value for key, value in self.recipe.items() if key not in ("run", "seed", "threads", "output")}
        return SEED.sub("", self.label), json.dumps(same, sort_keys=True) if same else str(self.path)


def open_runs(paths: Sequence[str | Path]) -> list[Run]:
    """The runs in these folders, labelled so that they can be told apart; `UserError` for the first that is none."""
    runs = [open_run(path) for path in paths]
    labels = [run.label for run in runs]
    return [
        run if labels.count(run.label) == 1 else Run(**{**vars(run), "label": str(run.path)}) for run in runs
    ]


def trainings(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs by what was trained, seeds of one thing together: a label → its runs."""
    series: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        series.setdefault(run.series, []).append(run)
    names = [key[0] for key in series]
    return {
        key[0] if len(same) > 1 and names.count(key[0]) == 1 else same[0].label: same for key, same in series.items()
    }


def open_run(path: str | Path) -> Run:
    """The run in one folder (or in its `export/` alone, which names no held-out pictures)."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"there is no run folder {path}", expected="run folders of `task: sharpen`")
    recipe = _recipe(path)
    task = recipe.get("task", "sharpen")
    if task != "sharpen":
        raise UserError(f"{path} is a run of `task: {task}`", expected="run folders of `task: sharpen`")
    if recipe and not (path / "export" / adapters.CONFIG).is_file():
        raise UserError(
            f"{path} has no export yet",
            expected="a finished training",
            todo=f"deepspeed radio_distill/train.py {path / 'recipe.yaml'}   (goes on where it stopped)",
        )
    try:
        export = sharpener.find(path)
    except UserError as error:
        raise UserError(error.what, expected="run folders of `task: sharpen`", todo=error.todo) from None
    if not (export / adapters.DOWNSAMPLER).is_file():
        raise UserError(
            f"{export} holds no {adapters.DOWNSAMPLER}, so its sharpener can be used but not judged",
            todo="repeat the command that trained it: a finished run writes its export anew",
        )
    teacher = adapters.read_config(export)["teacher"]
    label = path.resolve().name if export != path or path.name != "export" else path.resolve().parent.name
    return Run(label, path, export, teacher, adapters.read_settings(export), recipe)


def _recipe(path: Path) -> dict[str, Any]:
    """The recipe that the run was trained by; empty where none stands."""
    import yaml

    file = path / "recipe.yaml"
    if not file.is_file():
        return {}
    try:
        recipe = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read: {error}", expected="the recipe that training wrote") from None
    if not isinstance(recipe, dict):
        raise UserError(f"{file} is no recipe", expected="the recipe that training wrote")
    return recipe


def teacher_of(run: Run, device: torch.device | str) -> Encoder:
    """The teacher that a run was trained for; `UserError` naming the run where its weights are missing."""
    try:
        return sharpener.build_teacher(run.export, device=device)
    except UserError as error:
        raise UserError(
            f"{run.path}: its teacher '{run.teacher['name']}' cannot be built: {error.what}",
            expected=error.expected,
            todo=error.todo,
        ) from None


def restore(run: Run, encoder: Encoder, views: ViewsConfig, device: torch.device | str) -> SharpenObjective:
    """The objective that trained the run, with what it learned, looking at `views`."""
    adapter, config = adapters.load(run.export, encoder)
    downsampler = build_downsampler(config.downsampler, encoder.dims.spatial, config.factor)
    adapters.load_weights(downsampler, run.export / adapters.DOWNSAMPLER)
    objective = SharpenObjective(encoder, config.model_copy(update={"views": views}), device=device)
    objective.model.adapter, objective.model.downsampler = adapter, downsampler
    objective.model.to(device).eval().requires_grad_(False)
    return objective
