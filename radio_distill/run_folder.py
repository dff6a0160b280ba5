"""A recipe → its run folder: what was asked for, by which code, on what; and whether a run may go on there."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from radio_distill import checkpoint
from radio_distill.engine import RankError
from radio_distill.recipe import FREE_KEYS, Recipe
from teachers.errors import UserError

RECIPE, ENVIRONMENT, LOCK, EXPORT = "recipe.yaml", "environment.txt", ".lock", "export"
PACKAGES = ("torch", "torchvision", "deepspeed", "timm", "open_clip_torch", "webdataset", "safetensors", "numpy")


@contextmanager
def opened(recipe: Recipe) -> Iterator[Path]:
    """The run folder, made or checked, and held against a second trainer while the context lasts (first rank only)."""
    run = recipe.folder
    check_ours(run)
    if recipe.restart and run.exists():
        with _held(run):
            move_aside(run)
    with _held(run):
        _check_same(recipe, run)
        write_text(run / RECIPE, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
        write_text(run / ENVIRONMENT, environment())
        yield run


def check_ours(run: Path) -> None:
    """Raise `UserError` for a folder that holds things and in which no run was begun: it is neither used nor moved."""
    if not run.is_dir() or any((run / name).exists() for name in (RECIPE, "checkpoints")):
        return
    strange = sorted({entry.name for entry in run.iterdir()} - {LOCK})
    if strange:
        raise UserError(
            f"run: {run} holds other things ({', '.join(strange[:3])}{', ...' * (len(strange) > 3)}) and no run",
            expected="a new or empty folder, or one of a run (with recipe.yaml)",
            todo=f"run={run / 'run'}, or another name",
        )


def check_there(run: Path) -> None:
    """Raise `RankError` where a run's folder has been removed or renamed while it trained."""
    if not (run / RECIPE).is_file():
        raise RankError(
            f"the run folder {run} is gone: it was removed or renamed during the run",
            expected=f"{run / RECIPE} as it was written at the start",
            todo="put it back under its name, then run the same command again: it goes on from the last checkpoint",
        )


@contextmanager
def _held(run: Path) -> Iterator[None]:
    """The folder, made if it is not there, and locked."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = open(run / LOCK, "w")  # noqa: SIM115 (held below)
    except OSError as error:
        what = f"the run folder {run} cannot be written: {error.strerror}"
        raise UserError(what, todo="choose another: run=...") from None
    with lock:
        try:
            # Not flock: loader processes would inherit it, and hold it for a while after a trainer that was killed.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            what = f"another process is training in {run}"
            raise UserError(what, todo="wait for it, or choose another: run=...") from None
        yield


def finished(recipe: Recipe) -> bool:
    """Whether this very recipe has been trained to its end there; `UserError` where another one was begun."""
    newest = checkpoint.latest(recipe.folder)
    if recipe.restart or newest is None:
        return False
    _check_same(recipe, recipe.folder)
    return checkpoint.step_of(newest) >= recipe.steps and (recipe.folder / EXPORT).is_dir()


def move_aside(run: Path) -> None:
    """Rename an existing run folder out of the way; nothing of it is deleted."""
    place = run.with_name(f"{run.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
    while place.exists():  # two within a second
        place = place.with_name(f"{place.name}+")
    os.replace(run, place)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _check_same(recipe: Recipe, run: Path) -> None:
    """A run goes on with the recipe that it was begun with, or not at all."""
    if checkpoint.latest(run) is None or not (run / RECIPE).exists():
        return  # nothing has been learnt here yet
    begun = yaml.safe_load((run / RECIPE).read_text())
    with suppress(ValidationError):  # keys that came since then had their defaults
        begun = Recipe.model_validate(begun).model_dump(mode="json")
    before, now = _flat(begun), _flat(recipe.model_dump(mode="json"))
    changed = [
        f"  {key}: {before.get(key, '(not there)')} → {now.get(key, '(not there)')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key.split(".")[0] not in FREE_KEYS
    ]
    if changed:
        raise UserError(
            "\n".join([f"the run in {run} was begun with another recipe ({run / RECIPE}):", *changed]),
            expected="the recipe that it was begun with; what was learnt would not be what the recipe says",
            todo="undo the change, or train elsewhere with run=..., or add restart=true (the old run is moved aside)",
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{prefix}{name}.").items()}
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return {k: v for i, inner in enumerate(value) for k, v in _flat(inner, f"{prefix}{i}.").items()}
    return {prefix.rstrip("."): value}


def environment() -> str:
    """Commit, command, machine and versions: what else a figure depends on."""
    rows = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": " ".join(sys.argv),
        "commit": commit(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
    }
    for name in PACKAGES:
        try:
            rows[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            rows[name] = "not installed"
    return "".join(f"{key}: {value}\n" for key, value in rows.items())


def commit() -> str:
    """The commit of this code, `-dirty` where it has been changed since; `unknown` outside a checkout."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
