"""Trained sharpeners → the time that they and their teacher take against resolution, measured here and now.

As figure 14 of FeatSharp (arXiv 2502.16025): a teacher of cost c a look needs about c·f⁴ for an image f times as large
in each direction where attention rules, and (1 + f²)·c for the whole and its tiles.

Shapes: f factor, R the teacher's native size, g its grid.
"""

from __future__ import annotations

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from featsharp.looks import as_picture
from featsharp.runs import Run
from featsharp.sharpener import Sharpener
from teachers.errors import UserError
from teachers.features import Encoder
from teachers.seeding import torch_rng

if TYPE_CHECKING:
    from PIL.Image import Image

FACTORS = (1, 2, 3, 4)
WARM_UP, LEAST, MOST, SECONDS = 2, 3, 200, 2.0  # calls before timing; fewest and most timed calls; time for them
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe and Ito
DASHES = ("-", "--", ":")  # of the lines that would have the same colour


def measure(runs: Sequence[Run], encoder: Encoder, device: torch.device | str) -> dict[str, Any]:
    """Milliseconds an image and microseconds a cell of the map at f·R for several f, of batches of one.

    `native` (where the teacher can) sees the whole image at once; `tiles` is the teacher's 1 + f² passes alone; each
    kind of upsampler adds its own work to the passes that it asks for. Its weights do not matter, so factors that no
    run was trained for are measured too.
    """
    series: dict[str, list[dict[str, float]]] = {}
    kinds = {run.config.upsampler: run.config for run in reversed(runs)}
    for factor in FACTORS:
        height, width = (n * factor for n in encoder.native_size)
        image = torch.rand(1, 3, height, width, generator=torch_rng("cost")).to(device)
        passes = 1 if factor == 1 else 1 + factor**2
        batch = torch.rand(passes, 3, *encoder.native_size, generator=torch_rng("cost")).to(device)
        calls: dict[str, Callable[[], object]] = {"1 + f² passes": lambda batch=batch: encoder(batch)}
        if encoder.resolution_flexible or factor == 1:
            calls["native"] = lambda image=image: encoder(image)
        for name, config in kinds.items():
            with contextlib.suppress(UserError):  # an upsampler that cannot have this factor
                sharp = Sharpener(encoder, config.model_copy(update={"factor": factor})).to(device)
                calls[name] = lambda sharp=sharp, image=image: sharp(image)
        h, w = encoder.grid(encoder.native_size)
        for name, call in calls.items():
            try:
                seconds = median_seconds(call, device)
            except torch.OutOfMemoryError:  # the line ends where the memory does
                continue
            point = {"factor": factor, "height": height, "width": width, "cells": h * w * factor**2}
            point |= {"ms_image": 1e3 * seconds, "us_cell": 1e6 * seconds / point["cells"]}
            series.setdefault(name, []).append(point)
    return {"machine": machine(device), "series": series}


def median_seconds(call: Callable[[], object], device: torch.device | str) -> float:
    """The median time of `call`, after a warm-up."""
    kind = torch.device(device).type
    wait = torch.cuda.synchronize if kind == "cuda" else lambda: None
    for _ in range(WARM_UP):
        call()
    times: list[float] = []
    while len(times) < LEAST or (len(times) < MOST and sum(times) < SECONDS):
        wait()
        begun = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def machine(device: torch.device | str) -> str:
    """What the times were measured on."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, threads: {torch.get_num_threads()}, torch {torch.__version__}"


def draw(measured: dict[str, Any]) -> Image:
    """Time an image and a cell against resolution, a line a way to get there."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    panels = figure.subplots(1, 2)
    fixed = {"native": ("#222222", "o"), "1 + f² passes": ("#7f7f7f", "s")}
    names = sorted(measured["series"], key=lambda name: (name in fixed, name != "native"))
    for axes, key, label in zip(panels, ("ms_image", "us_cell"), ("ms an image", "µs a cell of the map")):
        for number, name in enumerate(names):
            points = measured["series"][name]
            turn, place = divmod(number, len(COLOURS))
            colour, marker = fixed.get(name, (COLOURS[place], "^"))
            dash = "-" if name in fixed else DASHES[turn % len(DASHES)]
            sides = [max(point["height"], point["width"]) for point in points]
            axes.plot(
                sides, [point[key] for point in points], dash, color=colour, marker=marker, markersize=4, label=name
            )
        every = [point for points in measured["series"].values() for point in points]
        ticks = {max(point["height"], point["width"]): point["factor"] for point in every}
        axes.set_xticks(list(ticks), [f"{side}\n({factor}x)" for side, factor in ticks.items()])
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("pixels, longer side", fontsize=8)
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(which="both", labelsize=8)
        axes.grid(which="major", linewidth=0.4, color="#dddddd")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    figure.supxlabel(measured["machine"], fontsize=7)
    return as_picture(figure)
