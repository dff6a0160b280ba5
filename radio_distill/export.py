"""A trained run → the student as users load it: `model.safetensors`, `config.json`, and a model card.

PHI-S is folded into the last layer of every feature head, so an exported student answers in its teachers' own spaces
and needs nothing of the trainer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from teachers.errors import UserError
from teachers.radio_files import CONFIG, FORMAT, WEIGHTS

if TYPE_CHECKING:
    from radio_distill.distill import DistillObjective


def write_export(objective: DistillObjective, folder: Path) -> None:
    """Write the student into `folder`, whole or not at all; an older export there is replaced."""
    from safetensors.torch import save_file

    from radio_distill.card import write_card

    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    config = export_config(objective)
    save_file(folded_weights(objective), temporary / WEIGHTS)
    (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    write_card(temporary, config, objective.recipe)
    replace_folder(temporary, folder)


def replace_folder(new: Path, place: Path) -> None:
    """Rename `new` to `place`, whatever stood there before."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)
    shutil.rmtree(old, ignore_errors=True)


def export_config(objective: DistillObjective) -> dict[str, Any]:
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
        "spec": objective.model.spec.as_dict(),
        "teachers": teachers,
    }


def folded_weights(objective: DistillObjective) -> dict[str, torch.Tensor]:
    """The student's weights with every teacher's PHI-S inverse inside its feature head, fp32 on the CPU."""
    weights = {key: value.detach().cpu().contiguous() for key, value in objective.model.state_dict().items()}
    for name, teacher in objective.teachers.items():
        last = f"heads.{name}.spatial.final.{len(objective.model.heads[name]['spatial'].final) - 1}"
        weight, bias = teacher.phi_s.fuse(objective.model.heads[name]["spatial"].last)
        weights[f"{last}.weight"], weights[f"{last}.bias"] = weight.cpu().contiguous(), bias.cpu().contiguous()
    return weights


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m radio_distill.export RUN`: export the newest checkpoint of a run, finished or not."""
    parser = argparse.ArgumentParser(
        prog="python -m radio_distill.export",
        description="Write the student (or the sharpener) of a run's newest checkpoint into RUN/export.",
        epilog="example: python -m radio_distill.export runs/quickstart",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--format", choices=["safetensors"], default="safetensors", help="what to write")
    parser.add_argument("--out", type=Path, help="another folder than RUN/export")
    options = parser.parse_args(arguments)
    try:
        place, step = export_checkpoint(options.run, options.out or options.run / "export")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{place} (step {step})")
    return 0


def export_checkpoint(run: Path, out: Path) -> tuple[Path, int]:
    """Export the newest checkpoint of `run` to `out`; returns `out` and the checkpoint's step."""
    from safetensors.torch import load_file

    from radio_distill import checkpoint
    from radio_distill.engine import World
    from radio_distill.objectives import build_objective
    from radio_distill.recipe import load_recipe
    from radio_distill.run_folder import RECIPE

    newest = checkpoint.latest(run)
    if newest is None or not (run / RECIPE).exists():
        raise UserError(f"{run} holds no checkpoint", expected="the run folder of a started run")
    objective = build_objective(load_recipe(run / RECIPE), World(0, 0, 1, torch.device("cpu")))
    objective.model.load_state_dict(load_file(newest / checkpoint.MODEL))
    objective.load_state(load_file(newest / checkpoint.TEACHERS))
    objective.artefact(out)
    return out, json.loads((newest / checkpoint.STATE).read_text())["step"]


if __name__ == "__main__":
    sys.exit(main())
