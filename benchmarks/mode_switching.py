"""Trains students whose teachers are in every stream, or split by resolution, and measures their heads at five sizes.

    python benchmarks/mode_switching.py                                # every arm, seeds 0 to 2; once a free core
    python benchmarks/mode_switching.py --only both split --seeds 0 1  # a part
    python benchmarks/mode_switching.py --report-only --report docs    # page and plot of what is done so far

Mode switching (RADIOv2.5, arXiv 2412.07679): where one teacher is only ever matched at low and the other only at high
resolution, the student becomes one model at small and another at large sizes. All arms have the same pictures, steps
and student. At every size the target is what the teacher says of the whole picture at its own fixed size, its map
resampled to the student's grid. A killed command goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import arms
import tables
from arms import Arm, Measured, Trial
from estimates import Estimate, difference, estimate
from matching import Teachers, match

from eval.datasets.tabletop import Config, open_split
from eval.plots import COLOURS
from eval.scores import MetricScore
from radio_distill.recipe import Recipe, TeacherConfig
from teachers.radio_encoder import RadioEncoder

NAME = "mode_switching"
KEY = "mode switching 1"  # raised when figures stop being comparable with earlier ones
SIZES = (48, 64, 96, 128, 160)  # pixels
# More of the large pictures than the other experiment has, or a teacher that is only there would hardly be learnt; and
# a position table that spans the largest size of all.
COMMON = (f"student.cpe_max={SIZES[-1]}", "streams.low.batch=8", "streams.high.batch=4")
ARMS = {
    arm.name: arm
    for arm in (
        Arm("both", "every teacher in both streams"),
        # The low stream sharpens nobody.
        Arm("split", "CLIP low, SigLIP high", (
            "streams.low.teachers=[clip]", "streams.high.teachers=[siglip]", "teachers.clip.sharpen=none",
        )),
        Arm("swapped", "SigLIP low, CLIP high", (
            "streams.low.teachers=[siglip]", "streams.high.teachers=[clip]", "teachers.siglip.sharpen=none",
        )),
    )
}  # fmt: skip
BASE = "both"
KINDS = {  # of error → as the plot's axes call it
    "feature error": "feature error ↓ (constant: 1)",
    "feature cosine": "features: 1 − cosine ↓",
    "summary cosine": "summary: 1 − cosine ↓",
}


class Measure:
    """Every head's errors at every size; pictures and teachers are kept between the runs."""

    def __init__(self, teachers: Mapping[str, TeacherConfig], scenes: int, sizes: Sequence[int] = SIZES):
        config = Config(kind="tabletop", size=max(sizes), val=scenes)
        self.teachers, self.sizes = Teachers(teachers, open_split("tabletop", config, Path(), "val")), sizes

    def __call__(self, trial: Trial) -> dict[str, MetricScore]:
        student, found = RadioEncoder.load(trial.folder), {}
        for size in self.sizes:
            found |= match(student, self.teachers, (size, size), False, str(size))
        return found


def trained_at(recipe: Recipe) -> dict[str, list[int]]:
    """Teacher → the sizes that its head has seen in training."""
    return {
        name: sorted({max(size) for s, config in recipe.streams.items() if name in recipe.teachers_of(s)
                      for size in config.size})
        for name in recipe.teachers
    }  # fmt: skip


Trained = Mapping[str, Mapping[str, list[int]]]  # arm → head → sizes that it has seen
Curves = dict[str, dict[str, dict[str, dict[int, Estimate]]]]  # kind → head → arm → size → figure


def curves(measured: Sequence[Measured], heads: Sequence[str], against: str | None = None) -> Curves:
    """Figures of every arm, or by how much each differs from the arm `against`."""
    found: Curves = {}
    for kind in KINDS:
        for head in heads:
            for arm in ARMS:
                base = arm if against is None else against
                pairs = tables.together(measured, arm, base)
                names = {size: f"{kind} {head} {size}" for size in _sizes(measured)}
                if not pairs or arm == against or any(n not in run.metrics for n in names.values() for run, _ in pairs):
                    continue
                found.setdefault(kind, {}).setdefault(head, {})[arm] = {
                    size: estimate([ours.metrics[n] for ours, _ in pairs]) if against is None
                    else difference([ours.metrics[n] for ours, _ in pairs], [base.metrics[n] for _, base in pairs])
                    for size, n in names.items()
                }  # fmt: skip
    return found


def _sizes(measured: Sequence[Measured]) -> list[int]:
    return sorted({int(name.split()[-1]) for run in measured for name in run.metrics})


def page(measured: Sequence[Measured], trained: Trained, recipe: str, command: str) -> str:
    """The report; `trained`: arm → head → sizes, which are marked."""
    heads, sizes = list(next(iter(trained.values()))), _sizes(measured)
    parts = ["# Mode switching: teachers in every stream, or split by resolution", "",
             tables.heading(measured, ARMS, recipe, command), "",
             "Errors in the teacher's own space, lower is better. Target at every size: what the teacher says of the "
             "whole picture at its own fixed size, its map resampled to the student's grid. * : this head was trained "
             "at this size.", ""]  # fmt: skip
    found, changed = curves(measured, heads), curves(measured, heads, against=BASE)
    for kind in found:
        parts += [f"## {KINDS[kind][0].upper()}{KINDS[kind][1:]}", ""]
        for source, signed in ((found, False), (changed, True)):
            rows = [
                [head, ARMS[arm].title + (f" − {ARMS[BASE].title}" if signed else ""),
                 *(tables.cell(v, "", signed) + "*" * (size in trained[arm][head]) for size, v in by_size.items())]
                for head, by_arm in source.get(kind, {}).items() for arm, by_size in by_arm.items()
            ]  # fmt: skip
            if rows:
                parts += [tables.markdown_table(["head", "teachers", *(f"{size} px" for size in sizes)], rows, texts=2)]
    parts += ["**Bold**: the difference's interval leaves out 0.", "", f"![{NAME}.png]({NAME}.png)", ""]
    return "\n".join(parts)


def picture(measured: Sequence[Measured], trained: Trained):
    """A panel a kind of error and head: an arm a line over sizes, filled where the head was trained."""
    from matplotlib.figure import Figure

    heads, sizes = list(next(iter(trained.values()))), _sizes(measured)
    found = curves(measured, heads)
    figure = Figure(figsize=(2.9 * len(heads), 0.9 + 2.3 * len(found)), layout="constrained")
    every = figure.subplots(len(found), len(heads), sharex=True, sharey="row", squeeze=False)
    for row, (kind, by_head) in zip(every, found.items()):
        for axes, (head, by_arm) in zip(row, by_head.items()):
            for number, (arm, by_size) in enumerate(by_arm.items()):
                _line(axes, by_size, trained[arm][head], COLOURS[number], "os^"[number % 3], ARMS[arm].title)
            axes.set_title(f"{head} head", fontsize=10, loc="left")
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.tick_params(labelsize=9)
            axes.grid(linewidth=0.4, color="#dddddd")
        row[0].set_ylabel(KINDS[kind], fontsize=9)
    for axes in every[-1]:
        axes.set_xlabel("student's image size, px", fontsize=9)
    handles, names = every[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", fontsize=9, frameon=False, title_fontsize=9,
                  title="filled: this head was trained at this size")  # fmt: skip
    return figure


def _line(axes, by_size: Mapping[int, Estimate], trained: Sequence[int], colour: str, mark: str, label: str) -> None:
    """One arm: a line, its interval as a band, its marks filled where it was trained."""
    sizes, values = list(by_size), list(by_size.values())
    axes.fill_between(sizes, [v.low for v in values], [v.high for v in values], color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        sizes, [v.mean for v in values], color=colour, marker=mark, markersize=5, markerfacecolor="white", label=label
    )
    inside = [size for size in sizes if size in trained]
    axes.plot(inside, [by_size[size].mean for size in inside], color=colour, marker=mark, markersize=6, linestyle="")


def data(measured: Sequence[Measured], trained: Trained, recipe: str, command: str) -> dict:
    """All that the report says, for programs."""
    rows = []
    for kind, by_head in curves(measured, list(next(iter(trained.values())))).items():
        for head, by_arm in by_head.items():
            for arm, by_size in by_arm.items():
                rows += [
                    {"error": kind, "head": head, "arm": arm, "size": size, "trained": size in trained[arm][head]}
                    | value.as_dict()
                    for size, value in by_size.items()
                ]
    about = {name: {"title": arm.title, "overrides": [*COMMON, *arm.overrides], "trained at": trained.get(name),
                    "seeds": sorted(tables.by_seed(measured, name))} for name, arm in ARMS.items()}  # fmt: skip
    return {"command": command, "recipe": recipe, "commits": sorted({run.commit for run in measured}), "arms": about,
            "figures": rows}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = arms.command_line(__doc__, ARMS, f"runs/{NAME}")
    parser.add_argument("--scenes", type=int, default=300, help="held-out scenes that errors are measured on [300]")
    options = parser.parse_intermixed_args(arguments)
    command = arms.shown(NAME, arguments)
    wanted = arms.trials(options, ARMS, COMMON)
    trained = {trial.arm.name: trained_at(trial.recipe) for trial in wanted}

    def report(measured: list[Measured]) -> None:
        text, facts = (make(measured, trained, options.recipe, command) for make in (page, data))
        tables.write(options.report or options.out, NAME, text, facts, picture(measured, trained))

    def opened(first: Trial) -> Measure:
        return Measure(first.recipe.teachers, options.scenes)

    return arms.run(options, wanted, f"{KEY} {SIZES} {options.scenes}", opened, report)


if __name__ == "__main__":
    raise SystemExit(arms.guarded(main))
