"""Trained sharpeners → their fidelity on the same held-out pictures and views, as tables, bars and panels.

`python -m featsharp.fidelity RUN... [--shards SHARDS | --pictures FOLDER] [--samples N] [--cost] [--out DIR]`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featsharp import fidelity_report, looks, reading
from featsharp.config import ViewsConfig
from featsharp.fidelity import Drawn, figures
from featsharp.remembering import Remembering
from featsharp.runs import Run, open_runs, restore, teacher_of, trainings
from teachers.errors import UserError
from teachers.features import Encoder, Size

SAMPLES = 200  # where neither the command nor a recipe says how many
SHOWN = 4  # pictures in the panel
VIEWS = 5  # of a picture, at least: a training may make do with fewer, whose luck then decides too much

Source = Callable[[], Iterator[reading.Encoded]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m featsharp.fidelity",
        description="How well sharpened maps predict what the teacher says of other views of held-out pictures, with "
        "95 % bootstrap intervals over the pictures, and over seeds: runs of one recipe called x-seed0, x-seed1 make "
        "one row. Runs of one teacher are ranked together.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder of a trained sharpener")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--shards", nargs="+", help="held-out tar shards; default: those of the runs' own recipes")
    source.add_argument("--pictures", type=Path, help="a folder of held-out pictures instead")
    parser.add_argument("--samples", type=int, metavar="N", help="pictures to judge by; default: as many as the recipe")
    parser.add_argument("--cost", action="store_true", help="also measure time against resolution (takes minutes)")
    parser.add_argument("--out", type=Path, default=Path("runs/fidelity"), help="folder of the report [%(default)s]")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    try:
        return _run(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    if arguments.samples is not None and arguments.samples < 1:
        raise UserError(f"--samples {arguments.samples}", expected="at least 1 picture")
    groups: dict[str, list[Run]] = {}
    for run in open_runs(arguments.runs):
        groups.setdefault(run.identity, []).append(run)
    # Everything that can be wrong is found before the first picture is judged.
    sources = {identity: _source(runs, arguments) for identity, runs in groups.items()}
    encoders = {identity: teacher_of(runs[0], arguments.device) for identity, runs in groups.items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    measured = []
    for number, (identity, runs) in enumerate(groups.items(), 1):
        encoder, (pictures, names, samples) = encoders[identity], sources[identity]
        suffix = "" if len(groups) == 1 else f"_{number}_{encoder.name}"
        teacher = measure(runs, encoder, pictures, samples, arguments.device)
        measured.append({**teacher, "source": names, "pictures_of_it": []})
        # One seed of each is enough to look at.
        firsts = [replace(same[0], label=label) for label, same in trainings(runs).items()]
        drawn = {f"panel{suffix}.png": looks.maps_panel(firsts, encoder, _shown(pictures), arguments.device)}
        drawn[f"bias{suffix}.png"] = looks.bias_picture(firsts, encoder)
        if arguments.cost:
            from featsharp import cost

            measured[-1]["cost"] = cost.measure(runs, encoder, arguments.device)
            drawn[f"cost{suffix}.png"] = cost.draw(measured[-1]["cost"])
        for name, picture in drawn.items():
            if picture is not None:
                fidelity_report.keep(arguments.out / name, lambda path, picture=picture: picture.save(path))
                measured[-1]["pictures_of_it"].append(name)
    fidelity_report.write(measured, arguments.out)
    fidelity_report.show(measured)
    print(f"report: {arguments.out / 'fidelity.md'}")
    return 0


def _source(runs: Sequence[Run], arguments: argparse.Namespace) -> tuple[Source, list[str], int]:
    """The held-out pictures that all runs of a teacher are judged by, their names, how many of them."""
    asked = [run.heldout["samples"] for run in runs if run.heldout and "samples" in run.heldout]
    samples = arguments.samples or min(asked, default=SAMPLES)
    if arguments.pictures:
        if not arguments.pictures.is_dir():
            raise UserError(f"--pictures {arguments.pictures}: there is no such folder")
        return lambda: reading.from_folder(arguments.pictures), [str(arguments.pictures)], samples
    if arguments.shards:
        named = [arguments.shards]
    else:
        named = [_listed(run.heldout["shards"]) for run in runs if run.heldout]
        if len(named) < len(runs) or any(shards != named[0] for shards in named):
            raise UserError(
                "the runs' recipes do not name the same held-out shards: " + "; ".join(map(str, named or ["none"])),
                expected="the same pictures for all runs of a teacher",
                todo="--shards SHARDS or --pictures FOLDER",
            )
    reading.resolve(named[0])
    return lambda: reading.from_shards(named[0]), named[0], samples


def _listed(shards: str | Sequence[str]) -> list[str]:
    return [shards] if isinstance(shards, str) else list(shards)


def _shown(pictures: Source) -> Callable[[Size], torch.Tensor]:
    """The first pictures at a size, B×3×H×W in [0, 1]."""
    return lambda size: next(reading.batches(pictures(), size, SHOWN, SHOWN)).float(size)


def measure(
    runs: Sequence[Run], encoder: Encoder, pictures: Source, samples: int, device: torch.device | str
) -> dict[str, Any]:
    """Fidelity of everything trained for one teacher, the best first, and of bilinear; plain numbers, for JSON.

    Runs that differ by their seed make one row, whose interval is over pictures and seeds.
    All errors are in units of the first run's PHI-S statistics, which are nearly but not always the others'.
    """
    from rich.console import Console
    from rich.progress import track

    console, teacher = Console(stderr=True), Remembering(encoder)
    views, common = shared_views(runs)
    rows, yardsticks, alpha = [], {}, None

    def judge(run: Run) -> dict[str, np.ndarray]:
        nonlocal alpha
        objective = restore(run, teacher, views, device)
        batches = reading.batches(pictures(), objective.image_size, samples)
        total = -(-samples // reading.BATCH)
        watched = track(batches, run.label, total, transient=True, console=console, disable=not console.is_terminal)
        sums = objective.judge(watched).sums()
        own = objective.model.adapter.phi_s.alpha.item()
        alpha = alpha or own
        return {name: value if name == "cells" else value * (alpha / own) ** 2 for name, value in sums.items()}

    for label, same in trainings(runs).items():
        sums = [judge(run) for run in same]
        found, config = figures(sums), same[0].config
        yardstick = found.pop("bilinear_raw")
        yardsticks.setdefault(config.factor, {"factor": config.factor, "fidelity_raw": _numbers(yardstick)})
        each = [float(one["cells"].sum() / one["fidelity"].sum()) for one in sums]
        about = {"run": label, "paths": [str(run.path) for run in same], "by_seed": each}
        rows.append({**about, "upsampler": config.upsampler, "factor": config.factor, "figures": found})
    rows.sort(key=lambda row: -row["figures"]["fidelity"].value)
    best = rows[0]["figures"]["fidelity"]
    for row in rows:
        found = row.pop("figures")
        found["share"] = found["fidelity"].over(best)
        row.update({name: _numbers(drawn) for name, drawn in found.items()})
    facts = {key: runs[0].teacher[key] for key in ("identity", "width", "native_size", "licence")}
    return {
        "teacher": {"name": encoder.name, **facts},
        "pictures": len(sums[0]["cells"]),
        "views": {"shared_by_all_recipes": common, **views.model_dump()},
        "rows": rows,
        "bilinear": [yardsticks[factor] for factor in sorted(yardsticks)],
    }


def shared_views(runs: Sequence[Run]) -> tuple[ViewsConfig, bool]:
    """The views to judge by: the kind that the runs were trained with where that is the same, else the defaults."""
    kinds = [run.config.views.model_copy(update={"jitters": VIEWS}) for run in runs]
    if all(views == kinds[0] for views in kinds):
        most = max(run.config.views.jitters for run in runs)
        return kinds[0].model_copy(update={"jitters": max(VIEWS, most)}), True
    return ViewsConfig(), False


def _numbers(drawn: Drawn) -> dict[str, float | None]:
    return {key: value if value == value else None for key, value in drawn.estimate()._asdict().items()}  # NaN: no JSON
