"""Turns scores into `report.md`, a self-contained `report.html`, `scores.csv` and `delta.csv`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import eval.tables as tables
from eval.datasets.split import Split
from eval.delta_m import Estimate, Row, Table, average_rank
from eval.encoders import Model
from eval.panels import panels
from eval.plots import data_uri, delta_bars, encode
from eval.scores import Score
from eval.tasks import TASKS
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
) -> Path:
    """Write everything into `suite.out`; returns the path of report.html."""
    pictures = _pictures(suite, models, rows, baseline)
    report = {
        "title": title, "about": suite.recipe.about, "baseline": baseline, "common": common,
        "coverage": tables.coverage(rows, scores) if rows else "no score",
        "models": _models(models, scores), "names": table.models,
        "delta": _delta_rows(rows, average_rank(table), baseline), "groups": list(rows[0].groups) if rows else [],
        "uncertainty": _uncertainty(table, scores, rows),
        "lines": tables.lines(scores, counting=True), "shown": tables.lines(scores, counting=False),
        "notes": _notes(scores, rows), "protocols": _protocols(suite, scores), "synthetic": _synthetic(suite),
        "command": command, "commit": scores[0].commit, "date": time.strftime("%Y-%m-%d %H:%M"),
        "libraries": scores[0].libraries, "seconds": sum(score.seconds for score in scores),
    }  # fmt: skip
    suite.out.mkdir(parents=True, exist_ok=True)
    files = {name: f"{name.replace(' ', '_')}.png" for name, _, _ in pictures}
    for name, _, content in pictures:
        (suite.out / files[name]).write_bytes(content["png"])
    inline = {name: data_uri(content[kind], kind) for name, kind, content in pictures}
    _write(suite.out / "report.md", _render("report.md.j2", report | {"pictures": files}))
    _write(suite.out / "report.html", _render("report.html.j2", report | {"pictures": inline}))
    _write(suite.out / "scores.csv", tables.scores_csv(scores))
    _write(suite.out / "delta.csv", tables.delta_csv(table))
    return suite.out / "report.html"


def _write(path: Path, text: str) -> None:
    from radio_distill.run_folder import write_text

    write_text(path, text)


def _render(template: str, report: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True,
        autoescape=template.endswith("html.j2"), undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template(template).render(report)


def _pictures(
    suite: Suite, models: Sequence[Model], rows: Sequence[Row], baseline: str
) -> list[tuple[str, str, dict[str, bytes]]]:
    """(name, the kind that html embeds, bytes by kind) of every picture of the report."""
    pictures = []
    bars = delta_bars(rows, baseline)
    if bars is not None:
        pictures.append(("delta", "svg", {kind: encode(bars, kind) for kind in ("svg", "png")}))
    if suite.recipe.pictures is not None and suite.recipe.pictures.count:
        try:
            pictures += [(name, "png", {"png": sheet}) for name, sheet in panels(suite, models).items()]
        except UserError as error:  # a model that cannot take the size, data that are not there: scores still stand
            suite.say(f"no PCA panel: {error}")
    return pictures


def brief(estimate: Estimate) -> str:
    """`+0.39 ± 0.12`, `+12.3 ± 4.0`, `+456 ± 70`: as many decimals as a reader can use."""
    size = max(abs(estimate.mean), estimate.error or 0.0)
    decimals = 2 if size < 10 else 1 if size < 100 else 0
    text = f"{estimate.mean:+.{decimals}f}".replace("-", "−")
    return text if estimate.error is None else f"{text} ± {estimate.error:.{decimals}f}"


def _delta_rows(rows: Sequence[Row], ranks: dict[str, float | None], baseline: str) -> list[dict[str, Any]]:
    def plain(estimate: Estimate | None, is_baseline: bool) -> dict[str, str]:
        if estimate is None:
            return {"text": "n/a", "verdict": ""}
        if is_baseline:
            return {"text": "0", "verdict": ""}
        verdict = "" if estimate.resolved is None else estimate.verdict
        return {"text": brief(estimate), "verdict": verdict}

    return [
        {
            "model": row.model, "is_baseline": row.model == baseline,
            "overall": plain(row.overall, row.model == baseline),
            "groups": {group: plain(estimate, row.model == baseline) for group, estimate in row.groups.items()},
            "rank": "n/a" if ranks[row.model] is None else f"{ranks[row.model]:.2f}", "coverage": row.coverage,
        }
        for row in rows
    ]  # fmt: skip


def _models(models: Sequence[Model], scores: Sequence[Score]) -> list[dict[str, Any]]:
    described = []
    for model in models:
        own = [s for s in scores if s.identity == model.identity and "size" in s.facts]
        sizes = sorted({"×".join(map(str, score.facts["size"])) for score in own})
        parameters = sum(parameter.numel() for parameter in model.encoder.parameters())
        described.append(
            {
                "name": model.name,
                "spec": model.spec,
                "identity": model.identity[:8],
                "licence": model.encoder.licence,
                "parameters": f"{parameters / 1e6:.1f} M",
                "sizes": ", ".join(sizes),
                "patch": model.encoder.patch_size,
                "heads": ", ".join(model.adaptors) or "–",
            }  # fmt: skip
        )
    return described


def _uncertainty(table: Table, scores: Sequence[Score], rows: Sequence[Row]) -> str:
    """What ± covers, and what it does not."""
    seeds = sorted({seed for row in rows for seed in row.seeds})
    left = sorted({seed for row in rows for seed in row.unpaired})
    repeated = any(score.replicate for score in scores)
    covers = []
    if table.resamples:
        covers.append("the choice of test pictures (200 bootstrap resamples, the same for every model)")
    if seeds:
        covers.append(f"{len(seeds)} {'training runs' if repeated else 'probe seeds'}")
    if not covers:
        return "No standard errors: one value a cell."
    text = (
        f"± is one standard error over {' and '.join(covers)}; “not resolved” means that the 95 % interval contains 0."
    )
    if not repeated:
        text += " It does not cover the training seed: each model was trained once."
    return text + (f" Left out, because not every cell has them: {', '.join(left)}." if left else "")


def _notes(scores: Sequence[Score], rows: Sequence[Row]) -> list[str]:
    """What is missing, and why: one line a reason and task."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for score in scores:
        why = f"failed: {score.error}" if score.error else f"n/a: {score.not_applicable}"
        if score.error or score.not_applicable:
            reasons.setdefault((score.task, why), []).append(score.model)
    everybody = set(tables.names_of(scores))
    lines = []
    for (task, why), found in reasons.items():
        who = "every model" if set(found) == everybody else ", ".join(dict.fromkeys(found))
        lines.append(f"{task}, {who}: {why}")
    seen = {score.model: {s.group for s in scores if s.model == score.model and not s.metrics} for score in scores}
    for row in rows:
        for metric, reason in row.missing.items():
            if metric.group not in seen[row.model]:
                lines.append(f"{row.model}, {metric}: {reason}")
    return lines


def _protocols(suite: Suite, scores: Sequence[Score]) -> list[dict[str, Any]]:
    described = []
    for task, settings in suite.recipe.task_settings.items():
        module = TASKS[settings.task]
        own = [score for score in scores if score.task == task]
        plain = settings.model_dump(mode="json", exclude={"task", "data"})
        described.append(
            {
                "task": task,
                "kind": settings.task,
                "version": module.VERSION,
                "text": module.PROTOCOL,
                "group": own[0].group,
                "data": _source(suite, settings.data, module.SPLITS),
                "settings": ", ".join(f"{key} = {value}" for key, value in plain.items()),
            }  # fmt: skip
        )
    return described


def _source(suite: Suite, data: str, parts: Sequence[str]) -> str:
    try:
        splits: list[Split] = [suite.split(data, part) for part in parts]
    except UserError as error:
        return f"{data}: {error.what}"
    return f"{data}: " + ", ".join(f"{split.part} {split.count} pictures ({split.source})" for split in splits)


def _synthetic(suite: Suite) -> bool:
    return any(config.kind == "tabletop" for config in suite.recipe.datasets.values())
