"""Turns scores into `report.md`, a self-contained `report.html`, `scores.csv`, `scores.tex` and `delta.csv`."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.delta_m import Row, Table, average_rank, compare
from eval.encoders import Model
from eval.plots import looks
from eval.report import about
from eval.report.bars import delta_bars
from eval.report.caveats import caveats, uncertainty
from eval.report.csv_files import delta_csv, scores_csv
from eval.report.differences import delta_lines, metric_lines
from eval.report.illustration import Illustration
from eval.report.latex import Caption, scores_tex
from eval.report.lines import lines
from eval.report.markdown import code, plain
from eval.report.missing import absences, coverage
from eval.report.panels import panels
from eval.report.radar import radar
from eval.report.resolution import curves
from eval.report.strips import strips
from eval.scores import Score
from eval.tables import delta_table
from teachers.errors import UserError

if TYPE_CHECKING:
    from eval.suite import Suite


def write(
    suite: Suite,
    models: Sequence[Model],
    scores: Sequence[Score],
    table: Table,
    rows: Sequence[Row],
    *,
    baseline: str,
    title: str,
    command: str,
    common: bool,
    refused: UserError | None = None,
) -> Path:
    """Write everything into `suite.out`; returns the path of report.html.

    Args:
        models: that were opened; scores may be of others, too.
        table: the scores that count, and published rows, if any.
        rows: Δm% of `table` against `baseline`, none where no metric counts.
        refused: why `baseline` is not the one that was asked for.
    """
    report = _content(suite, scores, table, rows, baseline, refused) | {
        "title": title, "command": command, "common": common, "date": time.strftime("%Y-%m-%d %H:%M"),
        "models": about.described_models(models, scores, table.models),
        "pictures": _pictures(suite, models, scores, rows, baseline, table.models),
    }  # fmt: skip
    suite.out.mkdir(parents=True, exist_ok=True)
    for picture in (picture for own in report["pictures"].values() for picture in own):
        (suite.out / picture.file).write_bytes(picture.content)
    for name in ("report.md", "report.html"):
        _write(suite.out / name, _render(name.replace("report", "page") + ".j2", report))
    _write(suite.out / "scores.csv", scores_csv(scores))
    _write(suite.out / "delta.csv", delta_csv(table))
    told = Caption(baseline, report["date"], report["synthetic"])
    _write(suite.out / "scores.tex", scores_tex(report["lines"], report["shown"], report["delta"], table.models, told))
    return suite.out / "report.html"


def _content(
    suite: Suite, scores: Sequence[Score], table: Table, rows: Sequence[Row], baseline: str, refused: UserError | None
) -> dict[str, Any]:
    """What both pages say, but for pictures and models."""
    others = _with_models(delta_table(scores, counting=False), table.models)
    shown_rows = compare(others, baseline, undefined="missing") if others.directions else []
    counted, shown = lines(scores, table, counting=True), lines(scores, others, counting=False)
    return {
        "about": suite.recipe.about, "baseline": baseline, "names": table.models,
        "coverage": coverage(rows, scores) if rows else "no score", "groups": list(rows[0].groups) if rows else [],
        "delta": delta_lines(rows, average_rank(table) if rows else {}, baseline),
        "uncertainty": uncertainty(table, scores, rows),
        "caveats": caveats(scores, rows, counted, baseline, refused), "sources": about.sources(table),
        "lines": counted, "shown": shown, "differences": metric_lines(rows, shown_rows, baseline),
        "notes": absences(scores, rows), "protocols": about.described_protocols(suite, scores),
        "synthetic": about.synthetic(suite), "rehearsal": about.rehearsed(suite),
        "commit": about.commits(scores), "libraries": about.versions(scores),
        "seconds": sum(score.seconds for score in scores),
    }  # fmt: skip


def _with_models(table: Table, models: Sequence[str]) -> Table:
    """The table with a row, perhaps empty, for each of `models`, in their order."""
    table.models = list(models)
    return table


def _pictures(
    suite: Suite, models: Sequence[Model], scores: Sequence[Score], rows: Sequence[Row], baseline: str,
    names: Sequence[str],
) -> dict[str, list[Illustration]]:  # fmt: skip
    """Section of the report → its pictures."""
    drawn = looks(names, baseline)
    found = {
        "delta": [delta_bars(rows, baseline, drawn), radar(rows, baseline, drawn)],
        "resolution": curves(scores, drawn),
        "answers": strips(suite.out / "scores", scores),
        "features": _panels(suite, models),
    }
    return {section: [picture for picture in own if picture is not None] for section, own in found.items()}


def _panels(suite: Suite, models: Sequence[Model]) -> list[Illustration]:
    if suite.recipe.pictures is None or not suite.recipe.pictures.count:
        return []
    try:
        return panels(suite, models)
    except UserError as error:  # data that are not there: scores still stand
        suite.say(f"no PCA panel: {error}")
        return []


def _write(path: Path, text: str) -> None:
    from radio_distill.run_folder import write_text

    write_text(path, text)


def _render(template: str, report: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True,
        autoescape=template.endswith("html.j2"), undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"plain": plain, "code": code}
    environment.filters["quoted"] = shlex.quote
    environment.filters["breakable"] = _breakable
    text = environment.get_template(template).render(report)
    return re.sub(r"\n{3,}", "\n\n", text)


def _breakable(name: str) -> str:
    """A name as html that may be broken after its signs."""
    from markupsafe import Markup

    return Markup("<wbr>").join(re.split(r"(?<=[_:/?=+])", name))
