"""Turns `python -m eval RECIPE MODEL...` into scores, running only what is missing, and then into the report."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from eval import harness, published, rehearsal
from eval.config import EvalRecipe, keys_text, load_recipe
from eval.delta_m import Metric
from eval.encoders import FORMS, Model, open_models
from eval.scores import Score, check_protocols
from eval.suite import Suite
from eval.tasks import TASKS
from teachers.errors import UserError


def main(argv: list[str]) -> int:
    """The command; returns its exit status: 0, 1 where a task failed, 2 for a user's mistake."""
    arguments = _parser().parse_args(argv)
    recipe, path = load_recipe(arguments.recipe, arguments.set)
    import torch

    from radio_distill.run_folder import commit

    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    device = device_called(arguments.device)
    out = Path(arguments.out or f"runs/eval/{path.stem}").expanduser()
    suite = Suite(recipe, out, Path(arguments.data_root or recipe.data_root).expanduser(), _say, commit())
    announce(suite)
    models = open_models(arguments.models, device)
    baseline = arguments.baseline or models[0].name
    imported = harness.imported_scores(arguments.imported, models, arguments.imported_group)
    check_baseline(baseline, models, counted_groups(recipe, imported))
    check_names(imported, recipe)
    make_writable(suite.out / "scores")
    scores = [*suite.run(models), *imported]
    check_protocols(scores)
    command = shlex.join(["python", "-m", "eval", *argv])
    about = {"title": path.stem, "command": command, "common": arguments.common}
    refused = _report(suite, models, scores, baseline=baseline, **about)
    return 1 if any(score.error for score in scores) else 2 if refused else 0


def announce(suite: Suite) -> None:
    """Say that this is a rehearsal, where it is one."""
    if suite.rehearsal is not None:
        _say(f"{rehearsal.WORDS} ({suite.data_root / rehearsal.MARKER}: {rehearsal.limits(suite.rehearsal)})")


def device_called(name: str | None) -> str:
    """The device of that name, or the best one there is; `UserError` for one that this machine does not have."""
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # what torch answers depends on how it was built
        expected = "cpu, or cuda (cuda:1 for the second card) where there is one"
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}", expected=expected) from None
    return name


def make_writable(folder: Path) -> None:
    """Make the folder of the scores; `UserError`, before hours are spent, where nothing can be kept in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}", expected="a folder of yours, or a name that is free",
            todo="name another one: --out DIR",
        ) from None  # fmt: skip


def counted_groups(recipe: EvalRecipe, imported: Sequence[Score]) -> list[str]:
    """The groups of all that may enter Δm%."""
    tasks = [(settings, TASKS[settings.task]) for settings in recipe.task_settings.values()]
    counted = [
        settings.group or module.GROUP
        for settings, module in tasks
        if (module.COUNTS if settings.counts is None else settings.counts)
    ]
    return list(dict.fromkeys([*counted, *(score.group for score in imported if score.counts)]))


def check_baseline(baseline: str, models: Sequence[Model], groups: Sequence[str]) -> None:
    """Raise `UserError`, before hours are spent, for a baseline that is neither a model nor a row that can match.

    Args:
        groups: of the table that will be.
    """
    if baseline.startswith(published.PREFIX):
        published.check_groups(baseline, groups)
    elif baseline not in {model.name for model in models}:
        names = ", ".join(dict.fromkeys(model.name for model in models))
        expected = f"one of {names}, or {published.PREFIX}NAME (python -m eval published lists those)"
        raise UserError(f"--baseline {baseline}: no such model", expected=expected)


def check_names(imported: Sequence[Score], recipe: EvalRecipe) -> None:
    """Raise `UserError` where a benchmark of an imported file is called as a task of the recipe is."""
    twice = sorted({score.task for score in imported} & set(recipe.task_settings))
    if twice:
        raise UserError(
            f"{', '.join(twice)}: a task of the recipe, and a benchmark of an imported file",
            expected="one thing under one name",
            todo="give the recipe's task another name",
        )


def _report(
    suite: Suite, models: Sequence[Model], scores: Sequence[Score], *, baseline: str, **about
) -> UserError | None:
    """Δm%, the report's files, and a few lines on the console.

    Returns why it is not against `baseline`, a published row that does not match, but against the first model.
    """
    from eval.delta_m import compare
    from eval.report import write
    from eval.tables import delta_table

    table, refused = delta_table(scores), None
    if baseline.startswith(published.PREFIX):
        try:
            baseline = published.add_published(table, baseline, _units(scores))
            _say(f"{baseline}: {published.source_of(baseline)}")
        except UserError as error:  # the scores stand, and their report
            baseline, refused = models[0].name, error
    rows = compare(table, baseline, common=about["common"], undefined="missing") if table.directions else []
    report = write(suite, models, scores, table, rows, baseline=baseline, refused=refused, **about)
    _say("")
    for row in rows:
        verdict = f", {row.overall.verdict}" if row.overall and row.overall.error is not None else ""
        text = "baseline" if row.model == baseline else f"Δm% {row.overall or 'n/a'}{verdict}"
        _say(f"{row.model}: {text} (metrics: {row.coverage})")
    for score in scores:
        if score.error:
            _say(f"FAILED {score.model}, {score.task}: {score.error}")
    if suite.rehearsal is not None:
        _say(rehearsal.WORDS)
    if refused:
        _say(f"NOT against the baseline that was asked for: {refused}")
    _say(f"report: {report}")
    return refused


def _units(scores: Sequence[Score]) -> dict[Metric, str]:
    from eval.tables import labels

    columns = labels(scores, counting=True)
    figures = {(score.task, name): figure for score in scores for name, figure in score.metrics.items()}
    return {metric: figures[key].unit for key, metric in columns.items() if key in figures}


@cache
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval",
        description="Score models under one protocol, skipping what is scored already, and write the report.\n"
        "Other commands, each with --help: python -m eval data (which data sets of a recipe are there), protocols\n"
        "(what every task does), delta (Δm% of a plain table), published (figures of papers, checked).",
        epilog=f"A MODEL is {FORMS}.\nModels given one NAME are repetitions (training seeds).\n\n"
        "Keys of a recipe (NAME is yours to choose):\n" + keys_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a file, or one of recipes/eval/: quick, tabletop, full")
    parser.add_argument("models", metavar="MODEL", nargs="+", help="what to score; see below")
    about = "the model that Δm%% is against, or published:NAME for a published row (default: the first model)"
    parser.add_argument("--baseline", metavar="NAME", help=about)
    parser.add_argument("--out", metavar="DIR", help="scores and report (default: runs/eval/<recipe>)")
    parser.add_argument("--data-root", metavar="DIR", help="folder of the data sets (default: the recipe's)")
    parser.add_argument("--device", help="where models run (default: a CUDA device where there is one, else cpu)")
    about = f"figures of a VLM evaluation harness (lmms-eval, lm-evaluation-harness, VLMEvalKit), as {harness.FORM}"
    parser.add_argument("--imported", metavar="MODEL=FILE", action="append", default=[], help=about)
    about = "column of Δm%% that they enter (default: %(default)s)"
    parser.add_argument("--imported-group", metavar="NAME", default=harness.GROUP, help=about)
    parser.add_argument("--common", action="store_true", help="Δm%% over shared metrics where a row is incomplete")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key of the recipe")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stdout, flush=True)
