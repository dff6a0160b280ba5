"""A trained run → the student as users load it: a folder or file in one of four formats, each complete in itself.

PHI-S is folded into the last layer of every feature head and reparametrised weights into plain ones, so an exported
student answers in its teachers' own spaces and needs nothing of the trainer. Where the recipe averages weights
(`optim.ema`), the average is what is exported.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from teachers.errors import UserError
from teachers.radio import RadioModel
from teachers.radio_encoder import RadioEncoder
from teachers.radio_files import CARD, CONFIG, FORMAT, WEIGHTS, find_student, is_export
from teachers.weight_files import save_tensors
from teachers.written_folders import FolderWriter, check_replaceable

if TYPE_CHECKING:
    from radio_distill.distill import DistillObjective

# Where each format lies beside a run's checkpoints.
PLACES = {"safetensors": "export", "hub": "student.pth.tar", "hf": "hf", "onnx": "student.onnx"}
EXPORT = "an exported student"


def write_export(objective: DistillObjective, folder: Path) -> None:
    """Write the student into `folder` in our own layout, whole or not at all; an older export there is replaced."""
    from radio_distill.card import card_of

    encoder = trained_student(objective)
    encoder.card = card_of(encoder, objective.recipe, folder)
    write_safetensors(encoder, folder)


def trained_student(objective: DistillObjective) -> RadioEncoder:
    """The student as it is exported: plain fp32 weights on the CPU, every head in its teacher's own space."""
    spec, weights = objective.result.baked()
    with torch.device("meta"):
        model = RadioModel(spec)
    # What balances the losses learns with the student and is no part of it.
    plain = {key: tensor.detach().cpu().float() for key, tensor in weights.items() if not key.startswith("balance.")}
    model.load_state_dict(plain, assign=True)
    for name, teacher in objective.teachers.items():
        last = model.heads[name]["spatial"].last
        weight, bias = copy.deepcopy(teacher.phi_s).cpu().fuse(last)
        last.weight, last.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
    return RadioEncoder(model, export_config(objective, spec.as_dict()), name=objective.recipe.folder.name)


def export_config(objective: DistillObjective, spec: dict[str, Any]) -> dict[str, Any]:
    """What config.json says: how to build the student, at which size it is at home, who taught it."""
    recipe = objective.recipe
    first = next(iter(recipe.streams.values()))
    teachers = {
        name: {
            "encoder": teacher.config.encoder,
            "weights": teacher.config.weights,
            "options": teacher.config.options,
            "sharpen": teacher.config.sharpen,
            "identity": teacher.base.identity,
            "licence": teacher.base.licence,
            "has_text": teacher.base.has_text,
        }
        for name, teacher in objective.teachers.items()
    }
    licences = sorted({teacher["licence"] for teacher in teachers.values()})
    return {
        "format": FORMAT,
        "licence": "as its teachers' weights allow: " + "; ".join(licences),
        "preferred_size": list(max(first.size, key=lambda size: size[0] * size[1])),
        "spec": spec,
        "teachers": teachers,
    }


# The formats ------------------------------------------------------------------------------------------------------


def write_safetensors(encoder: RadioEncoder, folder: Path) -> None:
    """Our own layout: config.json, model.safetensors, and the card if there is one."""
    spec, weights = encoder.model.baked()
    config = {**encoder.config, "format": FORMAT, "spec": spec.as_dict()}
    with FolderWriter(folder, is_export, EXPORT, (CONFIG, WEIGHTS, CARD)) as new:
        save_tensors(weights, new / WEIGHTS)
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        if encoder.card is not None:
            (new / CARD).write_text(encoder.card)


def write_hub(encoder: RadioEncoder, file: Path, step: int = 0) -> list[str]:
    """A checkpoint file that the public RADIO hub loads (`UserError` where it could not); returns its limits there."""
    from teachers.radio_released import hub_checkpoint, hub_limits, write_checkpoint

    write_checkpoint(hub_checkpoint(encoder.model, encoder.config, step), file)
    return hub_limits(encoder.model.spec)


def write_hf(encoder: RadioEncoder, folder: Path, adaptors: Sequence[str] = ()) -> None:
    """A Hugging Face folder, for `HubStudent.from_pretrained`; `adaptors` are what it answers with by default."""
    from teachers.radio_hub import HubStudent

    with FolderWriter(folder, is_export, EXPORT, (CONFIG, WEIGHTS, CARD)) as new:
        HubStudent(encoder, adaptors).save_pretrained(new)


# The command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m radio_distill.export RUN`: export the newest checkpoint of a run, finished or not."""
    parser = argparse.ArgumentParser(
        prog="python -m radio_distill.export",
        description="Write the student of a run's newest checkpoint (or the sharpener, into RUN/export).",
        epilog="example: python -m radio_distill.export runs/quickstart --format onnx --size 224",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder; or any exported student, to convert it")
    formats = "ours, the public RADIO hub's checkpoint, a Hugging Face folder, or ONNX"
    parser.add_argument("--format", choices=list(PLACES), default="safetensors", help=formats)
    places = ", ".join(f"RUN/{place}" for place in PLACES.values())
    parser.add_argument("--out", type=Path, help=f"another place than {places} (of an export: beside it)")
    parser.add_argument("--size", type=int, nargs="+", metavar="PIXELS", help="onnx: one side, or height and width")
    names = "onnx: the heads in the graph (all without); hf: those it answers with by default (none without)"
    parser.add_argument("--adaptors", nargs="*", metavar="NAME", help=names)
    options = parser.parse_args(arguments)
    try:
        place, told = export(options.run, options.format, options.out, options.size, options.adaptors)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{place} ({told})")
    return 0


def export(
    run: Path,
    kind: str = "safetensors",
    out: Path | None = None,
    size: Sequence[int] | None = None,
    adaptors: Sequence[str] | None = None,
) -> tuple[Path, str]:
    """Write the student of `run` (or of an exported student) as `kind`; returns the place and what there is to tell.

    Raises `UserError` where `out` holds what is no export, before anything is built.
    """
    _check_options(kind, size, adaptors)
    if out is not None:
        _check_place(out, kind)
    if _has_checkpoints(run):
        out = out or run / PLACES[kind]
        if kind == "safetensors":
            return _with_parent(out), f"step {export_checkpoint(run, out)[1]}"
        encoder, step = _student_of(run, kind, out)
        told = f"step {step}"
    else:
        place, step = find_student(run), 0
        encoder, told = RadioEncoder.load(place), f"from {place}"
        out = out or place.parent / PLACES[kind]
        if out.resolve() == place.resolve():
            raise UserError(f"{place} is an export already", todo="name another place with --out, or another --format")
    _with_parent(out)
    if kind == "onnx":
        from radio_distill.onnx_file import write_onnx

        return out, f"{told}, {write_onnx(encoder, out, size, adaptors)}"
    if kind == "hub":
        return out, "; ".join([told, *write_hub(encoder, out, step)])
    if kind == "hf":
        write_hf(encoder, out, adaptors or ())
    else:
        write_safetensors(encoder, out)
    return out, told


def export_checkpoint(run: Path, out: Path) -> tuple[Path, int]:
    """Export the newest checkpoint of `run` to `out` in our own layout; returns `out` and the checkpoint's step."""
    objective, step = _objective(run)
    objective.artefact(out)
    return out, step


def _student_of(run: Path, kind: str, out: Path) -> tuple[RadioEncoder, int]:
    from radio_distill.card import card_of

    objective, step = _objective(run)
    if objective.recipe.task != "distill":
        raise UserError(
            f"{run} trained a sharpener, which only this project can load",
            expected="a run with task: distill",
            todo=f"python -m radio_distill.export {run}   (safetensors)",
        )
    encoder = trained_student(objective)
    encoder.card = card_of(encoder, objective.recipe, out, "hf" if kind == "hf" else "folder")
    return encoder, step


def _objective(run: Path) -> tuple[Any, int]:
    """The objective of a run as its newest checkpoint left it, and the checkpoint's step."""
    from safetensors.torch import load_file

    from radio_distill import checkpoint
    from radio_distill.engine import World
    from radio_distill.objectives import build_objective
    from radio_distill.recipe import load_recipe
    from radio_distill.run_folder import RECIPE

    newest, damaged = checkpoint.newest_sound(run)
    for notice in damaged:
        print(notice, file=sys.stderr)
    objective = build_objective(load_recipe(run / RECIPE), World(0, 0, 1, torch.device("cpu")))
    objective.model.load_state_dict(load_file(newest / checkpoint.MODEL))
    objective.load_state(load_file(newest / checkpoint.TEACHERS))
    return objective, json.loads((newest / checkpoint.STATE).read_text())["step"]


def _has_checkpoints(run: Path) -> bool:
    """Whether `run` is a run folder to export from; raises `UserError` for what holds no student at all."""
    from radio_distill import checkpoint
    from radio_distill.run_folder import RECIPE

    if checkpoint.latest(run) is not None and (run / RECIPE).exists():
        return True
    try:
        find_student(run)
    except UserError:
        expected = "the run folder of a started run, or an exported student"
        raise UserError(f"{run} holds no checkpoint", expected=expected) from None
    return False


def _check_options(kind: str, size: Sequence[int] | None, adaptors: Sequence[str] | None) -> None:
    if size is not None and (kind != "onnx" or len(size) > 2):
        raise UserError(
            f"--size {' '.join(map(str, size))} does not go with --format {kind}" if kind != "onnx" else
            f"--size {' '.join(map(str, size))} is no image size",
            expected="with --format onnx, one side or a height and a width (the other formats take any size)",
        )  # fmt: skip
    if adaptors is not None and kind not in ("onnx", "hf"):
        raise UserError(
            f"--adaptors does not go with --format {kind}: all heads are in its file",
            todo="leave it out, and name the adaptors where the student is loaded",
        )


def _check_place(out: Path, kind: str) -> None:
    """Nothing that a user made is replaced."""
    if kind in ("safetensors", "hf"):
        from featsharp.adapter import is_adapter

        check_replaceable(out, lambda folder: is_export(folder) or is_adapter(folder), EXPORT)
    elif out.exists():
        raise UserError(
            f"{out} is there already: nothing was written",
            expected=f"--out with the name of a new {'.onnx' if kind == 'onnx' else '.pth.tar'} file",
            todo="name another file, or move that one away",
        )


def _with_parent(place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


if __name__ == "__main__":
    sys.exit(main())
