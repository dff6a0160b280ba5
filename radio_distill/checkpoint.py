"""The state of a run → a checkpoint folder that is either whole or not there, and back.

A checkpoint is `checkpoints/step-N/`: DeepSpeed's files (weights, optimiser) under `engine/`, the weights alone in
`model.safetensors` (readable without DeepSpeed), what the objective holds besides in `teachers.safetensors` (teacher
statistics, averaged weights), `state.json` (step, loader positions of every rank) and `checksums.json`. It is written
beside its place and renamed into it, and an older one is removed only after that.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radio_distill import checksums, reshard
from radio_distill.engine import RankError, World, is_lost_peer
from teachers.errors import UserError

ENGINE, MODEL, TEACHERS, STATE = "engine", "model.safetensors", "teachers.safetensors", "state.json"
CLASSES = (  # besides tensors and plain values, all that DeepSpeed's files hold at any ZeRO stage and precision
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    found = whole(run)
    return found[-1] if found else None


def newest_sound(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that is as it was written, and what to tell of newer ones that are not.

    Raises `UserError` where there are checkpoints and all are damaged.
    """
    damaged: list[str] = []
    for path in reversed(whole(run)):
        what = checksums.damage(path)
        if what is None:
            return path, [f"{text}: going on from {path}" for text in damaged]
        damaged.append(f"the checkpoint {path} is damaged, {what}")
    if damaged:
        raise UserError(
            "; ".join(damaged), expected="one that is as it was written", todo="add restart=true to begin again"
        )
    return None, []


def set_aside_after(sound: Path | None, run: Path) -> None:
    """Rename damaged checkpoints newer than the one that a run goes on from: their places are needed again."""
    for path in whole(run):
        if sound is not None and step_of(path) > step_of(sound):
            place = path.with_name(f"{path.name}.damaged")
            while place.exists():
                place = place.with_name(f"{place.name}+")
            os.replace(path, place)


def whole(run: Path) -> list[Path]:
    """All checkpoints, the oldest first; a folder that a user has renamed (`step-00000100.bad`) is none."""
    return sorted((p for p in (run / "checkpoints").glob("step-*") if _step_text(p).isdecimal()), key=step_of)


def step_of(path: Path) -> int:
    """The finished steps of a checkpoint folder."""
    return int(_step_text(path))


def _step_text(path: Path) -> str:
    return path.name.removeprefix("step-")


def save(
    run: Path, engine: Any, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], *, keep: int, world: World
) -> Path:
    """Write the checkpoint of `step` finished steps; all ranks call it together."""
    place = run / "checkpoints" / f"step-{step:08d}"
    if place.exists():
        return place
    temporary = place.with_name(f".unfinished-{place.name}")
    try:
        if world.first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        world.barrier()
        engine.save_checkpoint(str(temporary), tag=ENGINE, save_latest=False)
        with whole_parameters(engine):
            if world.first:
                _write_tensors(temporary / MODEL, engine.module.state_dict())
        if world.first:
            _write_tensors(temporary / TEACHERS, tensors)
            (temporary / STATE).write_text(json.dumps(facts))
            checksums.write(temporary)
            _reach_disk(temporary)
        world.barrier()
        if world.first:
            os.replace(temporary, place)
            for old in whole(run)[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
        if is_lost_peer(error):
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        raise not_written(f"the checkpoint {place}", run, error) from error
    world.barrier()
    return place


def whole_parameters(engine: Any, changed: bool = False) -> AbstractContextManager:
    """A context in which the engine's module holds all its weights: ZeRO 3 gathers what it had split. On all ranks.

    With `changed`, the first rank's are split anew at the end.
    """
    if engine.zero_optimization_stage() < 3:
        return nullcontext()
    from radio_distill.engine import quiet_deepspeed

    from_rank = 0 if changed else None
    return quiet_deepspeed().zero.GatheredParameters(list(engine.module.parameters()), modifier_rank=from_rank)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _reach_disk(folder: Path) -> None:
    """A rename must not reach the disk before what it names."""
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())


def not_written(what: str, run: Path, error: Exception) -> RankError:
    """What to say where `what` could not be written: why, how much room there is, and what is safe."""
    before = latest(run)
    whole = f"{before} is whole and training goes on from it" if before else "there is no earlier checkpoint"
    free = shutil.disk_usage(run).free / 2**30
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "inline_container" in reason:  # torch's zip writer, which does not say what the system told it
        reason = "it broke off, as on a full disk"
    return RankError(
        f"{what} could not be written: {reason}",
        expected=f"room on the disk ({free:.2f} GiB are free); {whole}",
        todo="make room, then run the same command again",
    )


@contextmanager
def _no_foreign_code(folder: Path) -> Iterator[None]:
    """DeepSpeed unpickles its files without reserve; in here torch admits only tensors, values and `CLASSES`.

    Raises `OSError` for a file that asks for anything else. A name is only compared here, never imported.
    """
    for file in sorted(folder.rglob("*.pt")):
        strange = set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) - set(CLASSES)
        if strange:
            text = f"{file.name} asks for {min(strange)}, which is in no checkpoint of ours and could run a program"
            raise OSError(text)
    modules = [name.rpartition(".") for name in CLASSES]
    known = [getattr(importlib.import_module(module), name) for module, _, name in modules]
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals(known):
            yield
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]


def load(path: Path, engine: Any, world: World) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Put a checkpoint's weights and optimiser into `engine`; returns its facts and its objective's tensors."""
    from safetensors.torch import load_file

    try:
        facts = json.loads((path / STATE).read_text())
        with _no_foreign_code(path / ENGINE):
            if facts["world"] != world.size and engine.zero_optimization_stage() > 0:
                reshard.restore(path / ENGINE, facts["world"], load_file(path / MODEL), engine)
            elif engine.load_checkpoint(str(path), tag=ENGINE)[0] is None:
                raise OSError("DeepSpeed found no weights in it")
        return facts, load_file(path / TEACHERS)
    except UserError:
        raise
    except Exception as error:  # damaged files raise nearly anything: of zip, pickle, JSON, DeepSpeed's asserts
        if is_lost_peer(error):
            raise
        raise UserError(
            f"the checkpoint {path} cannot be read: {' '.join(str(error).split())[:200] or type(error).__name__}",
            expected="a folder as radio_distill wrote it",
            todo=f"move {path} away to go on from the one before it, or add restart=true to begin again",
        ) from error
