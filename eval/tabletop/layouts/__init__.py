"""The tabletop → a data root with every data set of `recipes/eval/full.yaml`, each exactly as it is published.

File names, formats, label values, lists and annotation files are those of the real data sets, written from what is
published of them and not from what the readers accept; what no task reads (test parts, 3-D scans) is left out. The root
is marked as a rehearsal (`eval/rehearsal.py`).
"""

from __future__ import annotations

import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from eval import rehearsal
from eval.rehearsal import MARKER, Rehearsal
from eval.tabletop.layouts import (
    ade20k,
    captions,
    cityscapes,
    coco,
    imagenet,
    navi,
    nyud,
    pascal_context,
    questions,
    spair,
    voc,
)
from eval.tabletop.layouts import sam as sam_decoder
from eval.tabletop.layouts.common import Item, Plan, save_json
from eval.tabletop.shards import in_processes
from teachers.errors import UserError

VERSION = 1  # raised where the same command comes to write other files
# Of a probe, when such a root is evaluated: DPT's head in its full width takes a CPU half a minute a picture at 512 px,
# and in so few steps of the recipe's size a depth probe gets no pixel right, which leaves Δm% without a baseline.
STEPS, BATCH, HIDDEN, RATE = 20, 2, 32, 2e-2
FEWEST = 4  # scenes: with fewer, not every case would occur (crowds, pictures without annotation)
# Name → a module, or what is like one: FOLDER, items(plan), render(folder, plan, item) → what `finish` needs of it, and
# finish(folder, plan, [(item, what render returned), ...]).
LAYOUTS = {
    "imagenet": imagenet, "ade20k": ade20k, "voc": voc, "cityscapes": cityscapes, "coco2014": captions.coco2014,
    "flickr30k": captions.flickr30k, "navi": navi, "spair": spair, "nyud": nyud, "pascal_context": pascal_context,
    "vqav2": questions.vqav2, "gqa": questions.gqa, "coco": coco, "sam": sam_decoder,
}  # fmt: skip


def write(out: Path, scenes: int, seed: int, workers: int = 0) -> bool:
    """Render everything into the folder `out`, which appears when it is whole.

    Returns whether there was anything to do: an earlier output of the same command is left as it is. Raises `UserError`
    where `out` holds anything else.
    """
    if scenes < FEWEST:
        expected = f"{FEWEST} or more: with fewer, some cases do not occur"
        raise UserError(f"{scenes} scenes are too few", expected=expected)
    plan, told = Plan(seed, scenes), marker(seed, scenes)
    if _is_there(out, told):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        _fill(part, plan, workers)
        save_json(part / MARKER, told.model_dump())
        if out.exists():
            out.rmdir()  # it is empty
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return True


def marker(seed: int, scenes: int) -> Rehearsal:
    """What the evaluation reads of such a root."""
    decoder = sam_decoder.FOLDER if sam_decoder.items(Plan(seed, scenes)) else None
    return Rehearsal(
        what="Rendered stand-ins in the layouts of published data sets: they rehearse an evaluation. Nothing measured "
        "here says anything about a model.",
        command=f"python -m eval.tabletop layouts OUT --scenes {scenes} --seed {seed}", version=VERSION, seed=seed,
        scenes=scenes, steps=STEPS, batch=BATCH, hidden=HIDDEN, lr=RATE, sam=decoder,
    )  # fmt: skip


def _is_there(out: Path, told: Rehearsal) -> bool:
    """Whether `out` is an earlier output of this very command; `UserError` where it is anything but that or nothing."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    found = rehearsal.read(out) if out.is_dir() else None
    if found == told:
        return True
    holds = "is an earlier output, of another seed, number of scenes or version" if found else "holds something else"
    raise UserError(
        f"{out} {holds}", expected="a folder that does not exist, or is empty: nothing is overwritten",
        todo="name another folder, or remove this one",
    )  # fmt: skip


def _fill(root: Path, plan: Plan, workers: int) -> None:
    items = [(name, item) for name, layout in LAYOUTS.items() for item in layout.items(plan)]
    made = dict(in_processes(partial(_render, root=root, plan=plan), items, workers, "rendering layouts"))
    for name, layout in LAYOUTS.items():
        own = [(item, made[name, item]) for item in layout.items(plan)]
        layout.finish(root / layout.FOLDER, plan, own)


def _render(named: tuple[str, Item], root: Path, plan: Plan) -> tuple[tuple[str, Item], Any]:
    name, item = named
    layout = LAYOUTS[name]
    return named, layout.render(root / layout.FOLDER, plan, item)


def _remove_leftovers(out: Path) -> None:
    """What a killed run of this command left beside `out`."""
    for left in out.parent.glob(f".{out.name}.*.part"):
        number = re.fullmatch(rf"\.{re.escape(out.name)}\.(\d+)\.part", left.name)
        if number and not psutil.pid_exists(int(number[1])):
            shutil.rmtree(left, ignore_errors=True)
