"""Trains one student a loss and seed, and reports what each part of the loss is worth, figure by figure.

    python benchmarks/ablation.py                               # every arm, seeds 0 to 2; start it once a free core
    python benchmarks/ablation.py --only mse phi_s --seeds 0 1  # a part
    python benchmarks/ablation.py --report-only --report docs   # the tables of what is done so far

The arms add up from PHI-S on: each is the one before and one thing more. Shifted windows see less of a picture than
whole crops do; `crops` has that alone, and `shift` the shifts besides. All have equal steps, data and seeds. Feature
errors are in the teachers' spaces whatever the loss compared. A killed command goes on where it was.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import arms
import numpy as np
import tables
from arms import Arm, Measured, Trial
from estimates import Estimate, difference, estimate
from matching import Teachers, match

from eval.config import load_recipe
from eval.encoders import open_model
from eval.plots import COLOURS
from eval.scores import MetricScore, Score
from eval.suite import Suite
from radio_distill.run_folder import commit
from teachers.errors import UserError
from teachers.radio_encoder import RadioEncoder

NAME = "ablation"
EVAL = "recipes/eval/ablation.yaml"
KEY = "ablation 1"  # raised when figures stop being comparable with earlier ones
PHI_S = ("loss.feature=mse", "loss.normalise=phi_s")
BALANCED = (*PHI_S, "loss.summary=balanced")
SHIFT = (*BALANCED, "loss.shift=0.5")
# What a window sees of its crop where shifts need a margin of one patch: (8/10)² of it at 64 px, (16/18)² at 128 px.
CROPS = (*BALANCED, "streams.low.scale=[0.32,0.64]", "streams.high.scale=[0.395,0.79]")
AVERAGE = (*SHIFT, "optim.ema=0.98")  # RADIO's 0.9996 averages over more steps than are made here
MESA = (*AVERAGE, "loss.mesa.weight=1.0", "loss.mesa.start=60")
ARMS = {
    arm.name: arm
    for arm in (
        Arm("hybrid", "hybrid loss", ("loss.feature=hybrid", "loss.normalise=none")),
        Arm("mse", "plain MSE", ("loss.feature=mse", "loss.normalise=none")),
        Arm("phi_s", "PHI-S", PHI_S),
        Arm("balanced", "+ balanced summary", BALANCED),
        Arm("crops", "+ the crops of shifted windows", CROPS),
        Arm("shift", "+ shift-equivariance", SHIFT),
        Arm("average", "+ averaged weights", AVERAGE),
        Arm("light", "+ MESA, weight 0.1", (*AVERAGE, "loss.mesa.weight=0.1", "loss.mesa.start=60")),
        Arm("mesa", "+ MESA, weight 1", MESA),
    )
}
AGAINST = {
    "mse": "hybrid", "phi_s": "mse", "balanced": "phi_s", "crops": "balanced", "shift": "crops", "average": "shift",
    "light": "average", "mesa": "average",
}  # fmt: skip
TASKS = {"k-NN top-1": "k-NN", "zero-shot top-1": "zero-shot", "mIoU": "mIoU"}  # the suite's metrics → our columns

KINDS = {  # a metric's first words → the report's sections
    "feature error": "Feature error in the teachers' spaces (1 = the best constant; lower is better)",
    "feature cosine": "Features, 1 − cosine (lower is better)",
    "summary cosine": "Summaries, 1 − cosine (lower is better)",
    "": "Labels and masks: k-NN, zero-shot through the head with text, a linear probe's mIoU (higher is better)",
}


class Measure:
    """Everything that is asked of a trained student; pictures and teachers are kept between the runs."""

    def __init__(self, teachers: Mapping, recipe: str = EVAL, overrides: Sequence[str] = ()):
        self.overrides, self.recipe = list(overrides), recipe
        opened, _ = load_recipe(recipe, self.overrides)
        self.data = next(iter(opened.datasets))
        split = Suite(opened, Path(), Path(opened.data_root).expanduser()).split(self.data, "val")
        self.teachers = Teachers(teachers, split)

    def __call__(self, trial: Trial) -> dict[str, MetricScore]:
        student, found = RadioEncoder.load(trial.folder), {}
        for name, stream in trial.recipe.streams.items():
            found |= match(student, self.teachers, max(stream.size), stream.sharpen, name)
        with tempfile.TemporaryDirectory() as cache:  # maps of a student are large, and nobody wants them again
            opened, _ = load_recipe(self.recipe, [*self.overrides, f"cache={cache}"])
            suite = Suite(opened, trial.folder, Path(opened.data_root).expanduser(), _silent, commit())
            scores = suite.run([open_model(str(trial.folder))])
        return found | _figures(scores)


def _figures(scores: Sequence[Score]) -> dict[str, MetricScore]:
    """The suite's metrics by our names, a probe's seeds averaged."""
    broken = next((score for score in scores if score.error), None)
    if broken:
        raise UserError(f"{broken.model}: task {broken.task} failed: {broken.error}")
    found = {}
    for metric, name in TASKS.items():
        seeds = [score.metrics[metric] for score in scores if metric in score.metrics]
        if seeds:
            resamples = np.mean([figure.resamples for figure in seeds], axis=0).tolist()
            value = float(np.mean([figure.value for figure in seeds]))
            found[name] = seeds[0].model_copy(update={"value": value, "resamples": resamples})
    return found


def columns(measured: Sequence[Measured]) -> dict[str, str]:
    """Every metric that any run has, with its unit, in order."""
    return {name: figure.unit for run in measured for name, figure in run.metrics.items()}


def figures(measured: Sequence[Measured]) -> dict[str, dict[str, Estimate]]:
    """Arm → metric → mean and interval."""
    found = {}
    for arm in ARMS:
        runs = list(tables.by_seed(measured, arm).values())
        found[arm] = {name: estimate([run.metrics[name] for run in runs]) for name in columns(runs)}
    return found


def changes(measured: Sequence[Measured]) -> dict[str, dict[str, Estimate]]:
    """Arm → metric → by how much it differs from the arm that it adds to, over the seeds that both have."""
    found = {}
    for arm, base in AGAINST.items():
        pairs = tables.together(measured, arm, base)
        found[arm] = {
            name: difference([ours.metrics[name] for ours, _ in pairs], [theirs.metrics[name] for _, theirs in pairs])
            for name in columns([ours for ours, _ in pairs])
        }
    return found


def page(measured: Sequence[Measured], recipe: str, command: str) -> str:
    """The report: for each kind of figure those of every arm, and what each change did."""
    units = columns(measured)
    found, changed = figures(measured), changes(measured)
    parts = ["# What each part of the loss is worth", "", tables.heading(measured, ARMS, recipe, command), "",
             "The second table of each kind: what the one thing more did, seed by seed on the same pictures. **Bold**: "
             "the interval leaves out 0; of so many comparisons one in twenty does by chance.", ""]  # fmt: skip
    for kind, about in KINDS.items():
        names = [name for name in units if _kind(name) == kind]
        if not names:
            continue
        header = [f"{name.removeprefix(kind).strip()}{', %' * (units[name] == '%')}" for name in names]
        rows = [
            [ARMS[arm].title, *(tables.cell(f.get(name), units[name]) for name in names)]
            for arm, f in found.items()
            if f
        ]
        steps = [
            [f"{ARMS[arm].title} − {ARMS[AGAINST[arm]].title}"]
            + [tables.cell(change.get(name), units[name], signed=True) for name in names]
            for arm, change in changed.items() if change
        ]  # fmt: skip
        parts += [f"## {about}", "", tables.markdown_table(["arm", *header], rows)]
        parts += [tables.markdown_table(["change", *header], steps)] if steps else []
    costs = [[ARMS[arm].title, f"{np.median([run.training['ms_a_step'] for run in runs]):.0f}"]
             for arm in ARMS if (runs := tables.by_seed(measured, arm).values())]  # fmt: skip
    parts += ["## Cost", "", tables.markdown_table(["arm", "ms a training step (median)"], costs)]
    return "\n".join([*parts, f"![{NAME}.png]({NAME}.png)", ""])


def _kind(name: str) -> str:
    """The section of the report that a metric stands in."""
    return next(kind for kind in KINDS if name.startswith(kind))


def picture(measured: Sequence[Measured]):
    """Arms from left to right: feature errors, k-NN, mIoU."""
    from matplotlib.figure import Figure

    found = {arm: named for arm, named in figures(measured).items() if named}
    units = columns(measured)
    errors = [name for name in units if name.startswith("feature error")]
    panels = {"feature error ↓": errors}
    panels |= {f"{name} ↑, %": [name] for name, unit in units.items() if unit == "%"}
    figure = Figure(figsize=(5.2, 2.6 + 1.7 * len(panels)), layout="constrained")
    every = figure.subplots(len(panels), sharex=True, gridspec_kw={"height_ratios": [1.6, *[1] * (len(panels) - 1)]})
    for axes, (title, names) in zip(np.atleast_1d(every), panels.items()):
        for number, name in enumerate(names):
            shift = (number - (len(names) - 1) / 2) * 0.14
            places = [place + shift for place, arm in enumerate(found) if name in found[arm]]
            values = [found[arm][name] for arm in found if name in found[arm]]
            axes.errorbar(
                places, [v.mean for v in values], yerr=[v.reach for v in values], fmt="os^D"[number % 4],
                markersize=5, color=COLOURS[number % len(COLOURS)], elinewidth=1.2, capsize=2,
                label=name.removeprefix("feature error "),
            )  # fmt: skip
        axes.set_title(title, fontsize=10, loc="left")
        axes.tick_params(labelsize=9)
        axes.grid(axis="y", linewidth=0.4, color="#dddddd")
        if len(names) > 1:
            axes.legend(fontsize=9, frameon=False, ncols=2)
    axes.set_xticks(range(len(found)), [ARMS[arm].title for arm in found], rotation=35, ha="right", fontsize=9)
    return figure


def data(measured: Sequence[Measured], recipe: str, command: str) -> dict:
    """All that the report says, for programs."""
    found, changed = figures(measured), changes(measured)
    rows = [
        {
            "arm": name, "title": arm.title, "overrides": list(arm.overrides), "against": AGAINST.get(name),
            "seeds": sorted(tables.by_seed(measured, name)),
            "training": [run.training for run in tables.by_seed(measured, name).values()],
            "figures": {metric: value.as_dict() for metric, value in found[name].items()},
            "changes": {metric: value.as_dict() for metric, value in changed.get(name, {}).items()},
        }
        for name, arm in ARMS.items()
    ]  # fmt: skip
    return {"command": command, "recipe": recipe, "commits": sorted({run.commit for run in measured}), "arms": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = arms.command_line(__doc__, ARMS, f"runs/{NAME}")
    parser.add_argument("--eval", default=EVAL, metavar="RECIPE", help=f"of the suite [{EVAL}]")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of that recipe")
    options = parser.parse_intermixed_args(arguments)
    command = arms.shown(NAME, arguments)

    def report(measured: list[Measured]) -> None:
        text, facts = page(measured, options.recipe, command), data(measured, options.recipe, command)
        tables.write(options.report or options.out, NAME, text, facts, picture(measured))

    def opened(first: Trial) -> Measure:
        return Measure(first.recipe.teachers, options.eval, options.set)

    return arms.run(options, arms.trials(options, ARMS), f"{KEY} {options.eval} {options.set}", opened, report)


def _silent(text: str) -> None:
    """The suite need not tell of every score."""


if __name__ == "__main__":
    raise SystemExit(arms.guarded(main))
