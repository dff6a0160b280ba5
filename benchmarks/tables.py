"""Estimates → the files of an experiment's report: a page of tables, the same figures as JSON, and a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from arms import Arm, Measured
from estimates import Estimate

from eval.plots import encode
from radio_distill.run_folder import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INTERVAL = (
    "± is half of a 95 % interval over training seeds and test pictures (Student's t, with the seeds' degrees of "
    "freedom where they decide; pictures by bootstrap, the same resamples for all; of one seed the pictures alone)."
)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table whose first columns (`texts` of them) are text and whose others are figures."""
    lines = [header, ["---"] * texts + ["---:"] * (len(header) - texts), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def cell(found: Estimate | None, unit: str, signed: bool = False) -> str:
    """`0.461 ± 0.006`, `35.0 ± 2.1` of a percentage; a difference over several seeds is bold where 0 is outside."""
    if found is None:
        return "–"
    digits = 1 if unit == "%" else 3
    text = f"{found.mean:{'+' if signed else ''}.{digits}f} ± {found.reach:.{digits}f}"
    return f"**{text}**" if signed and found.differs and len(found.by_seed) > 1 else text


def by_seed(measured: Sequence[Measured], arm: str) -> dict[int, Measured]:
    """An arm's runs."""
    return {run.seed: run for run in measured if run.arm == arm}


def together(measured: Sequence[Measured], one: str, other: str) -> list[tuple[Measured, Measured]]:
    """The runs of two arms that share a seed."""
    ours, theirs = by_seed(measured, one), by_seed(measured, other)
    return [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def heading(measured: Sequence[Measured], arms: Mapping[str, Arm], recipe: str, command: str) -> str:
    """What was run: command, commits, seeds, steps, pictures."""
    counts = {name: len(by_seed(measured, name)) for name in arms}
    seeds = sorted({run.seed for run in measured})
    commits = ", ".join(sorted({run.commit for run in measured}))
    steps = sorted({int(run.training["steps"]) for run in measured})
    n = sorted({figure.n for run in measured for figure in run.metrics.values()})
    lacking = [f"{name} has {count}" for name, count in counts.items() if 0 < count < len(seeds)]
    return (
        f"`{command}`, {recipe}, commit {commits}; {len(seeds)} seed{'s' * (len(seeds) != 1)}"
        + (f" ({'; '.join(lacking)})" if lacking else "")
        + f", {'/'.join(map(str, steps))} steps a run, n = {'/'.join(map(str, n))} held-out scenes. {INTERVAL}"
    )


def write(folder: Path, name: str, page: str, data: object, figure: Figure) -> None:
    """`NAME.md`, `NAME.json` and `NAME.png`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}.png"
    temporary.write_bytes(encode(figure, "png"))
    os.replace(temporary, folder / f"{name}.png")
    write_text(folder / f"{name}.json", json.dumps(data, indent=1) + "\n")
    write_text(folder / f"{name}.md", page)
