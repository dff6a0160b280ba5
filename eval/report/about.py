"""Turns models, scores and data sets into what a reader must know of them: sizes, licences, protocols, versions.

Neither a model nor a task module is taken for granted: published rows have no encoder, imported scores no task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from eval import harness, published, rehearsal
from eval.delta_m import Table
from eval.encoders import Model
from eval.scores import Score
from eval.tasks import TASKS
from teachers.errors import UserError

if TYPE_CHECKING:
    from eval.suite import Suite

NOTHING = "–"


def described_models(models: Sequence[Model], scores: Sequence[Score], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row a model that was opened, and one for each name of `names` that was not."""
    rows = [_model(model, [score for score in scores if score.identity == model.identity]) for model in models]
    opened = {model.name for model in models}
    return rows + [_figures_only(name) for name in names if name not in opened]


def _model(model: Model, own: Sequence[Score]) -> dict[str, Any]:
    sizes = sorted({tuple(score.facts["size"]) for score in own if "size" in score.facts})
    parameters = sum(parameter.numel() for parameter in model.encoder.parameters())
    return {
        "name": model.name, "spec": model.spec, "identity": model.identity[:8], "licence": model.encoder.licence,
        "parameters": f"{parameters / 1e6:.1f} M", "sizes": ", ".join("×".join(map(str, size)) for size in sizes),
        "patch": model.encoder.patch_size, "heads": ", ".join(model.adaptors) or NOTHING,
    }  # fmt: skip


def _figures_only(name: str) -> dict[str, Any]:
    row = dict.fromkeys(("identity", "licence", "parameters", "sizes", "patch", "heads"), NOTHING)
    return row | {"name": name, "spec": "figures only, not measured here"}


def sources(table: Table) -> list[str]:
    """Where published rows of the table stand."""
    rows = [name for name in table.models if name.startswith(published.PREFIX)]
    return [f"{name} was not measured here: {published.source_of(name)}" for name in rows]


def described_protocols(suite: Suite, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """An entry a task of the recipe, and one for all that was imported."""
    first = {score.task: score for score in reversed(scores)}
    tasks = [
        _protocol(suite, name, first[name]) | {"sizes": _sizes([score for score in scores if score.task == name])}
        for name in suite.recipe.task_settings
        if name in first
    ]
    imported = [score for score in scores if score.kind == harness.KIND]
    return tasks + ([_imported(imported)] if imported else [])


def _protocol(suite: Suite, task: str, score: Score) -> dict[str, Any]:
    settings = suite.recipe.task_settings[task]
    module = TASKS[settings.task]
    plain = settings.model_dump(mode="json", exclude={"task", "data"})
    return {
        "task": task, "kind": settings.task, "version": module.VERSION, "text": module.PROTOCOL, "group": score.group,
        "counts": score.counts, "data": _source(suite, settings.data, module.SPLITS),
        "settings": ", ".join(f"{key} = {value}" for key, value in plain.items() if value is not None),
    }  # fmt: skip


def _sizes(scores: Sequence[Score]) -> str:
    """Who was shown pictures of another size than most, because it takes no other."""
    sizes = {score.model: "×".join(map(str, score.facts["size"])) for score in scores if "size" in score.facts}
    most = Counter(sizes.values()).most_common(1)[0][0] if sizes else ""
    others = [f"{model} {size}" for model, size in sizes.items() if size != most]
    return f"Shown at {most}; {', '.join(others)}." if others else f"Shown at {most}." if most else ""


def _imported(scores: Sequence[Score]) -> dict[str, Any]:
    files = {
        score.facts.get("file", score.data): "{harness} {version}".format_map(_Known(score.facts)) for score in scores
    }
    return {
        "task": ", ".join(dict.fromkeys(score.task for score in scores)), "kind": harness.KIND,
        "version": scores[0].protocol, "text": harness.PROTOCOL, "group": scores[0].group,
        "counts": any(score.counts for score in scores),
        "data": "; ".join(f"{file} ({made.strip()})" for file, made in files.items()), "settings": NOTHING, "sizes": "",
    }  # fmt: skip


class _Known(dict):
    """Facts, of which any may be absent."""

    def __missing__(self, key: str) -> str:
        return ""


def _source(suite: Suite, data: str, parts: Iterable[str]) -> str:
    try:
        splits = [suite.split(data, part) for part in parts]
    except UserError as error:
        return f"{data}: {error.what}"
    return f"{data}: " + ", ".join(f"{split.part} {split.count} pictures ({split.source})" for split in splits)


def versions(scores: Sequence[Score]) -> dict[str, str]:
    """Library → version; several where scores of this table were made with several."""
    found: dict[str, list[str]] = {}
    for score in scores:
        for library, version in score.libraries.items():
            found.setdefault(library, []).append(version)
    return {library: " and ".join(dict.fromkeys(own)) for library, own in found.items()}


def commits(scores: Sequence[Score]) -> str:
    """Of the code that scored, the first one first."""
    return " and ".join(dict.fromkeys(score.commit for score in scores))


def synthetic(suite: Suite) -> bool:
    """Whether pictures were rendered."""
    return suite.rehearsal is not None or any(config.kind == "tabletop" for config in suite.recipe.datasets.values())


def rehearsed(suite: Suite) -> str:
    """That this is a rehearsal, and what is not as on the real data; nothing where it is none."""
    return "" if suite.rehearsal is None else f"{rehearsal.WORDS} Here {rehearsal.limits(suite.rehearsal)}."
