"""Turns an evaluation recipe (YAML) into checked settings: data sets and tasks by name, each held to its own schema."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from eval.datasets import DATASETS
from eval.tasks import TASKS
from eval.tasks.task import TaskSettings
from radio_distill import documents
from radio_distill.recipe import SizeKey
from teachers.section import Section

HELP = "python -m eval --help lists every key"


class Expected(Section):
    """What a whole part of a data set is known to be."""

    count: Annotated[int, Field(ge=1)] | None = Field(None, description="pictures, before any limit")
    identity: str | None = Field(None, description="checksum, as `python -m eval data RECIPE` prints it")


class ExpectConfig(Section):
    """What is checked before a data set is used: half a data set scores too, but says something else."""

    train: Expected = Field(default_factory=Expected)
    val: Expected = Field(default_factory=Expected)


class PicturesConfig(Section):
    """PCA panels of every model's features, in the report."""

    data: str = Field(description="a name under data:; its val part")
    count: Annotated[int, Field(ge=0)] = Field(4, description="pictures; 0 = none")
    size: Literal["native"] | SizeKey = Field("native", description="as a task's")


class EvalRecipe(Section):
    """What is scored. `data` and `tasks` are filled in by `schema_of`, a field a name."""

    about: str = Field("", description="one sentence for the report")
    data_root: str = Field("data", description="folder of the data sets; --data-root overrides it")
    data: Section = Field(description="by name; kind: says the layout")
    tasks: Section = Field(description="by name; task: says which")
    cache: str = Field("~/.cache/radio-distill/features", description="extracted features; may be deleted at any time")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of cached features, and of forward passes")
    batch: Annotated[int, Field(ge=1)] = Field(64, description="pictures a forward pass")
    threads: Annotated[int, Field(ge=1)] | None = Field(None, description="CPU threads; none = torch's choice")
    pictures: PicturesConfig | None = None

    @field_validator("pictures")
    @classmethod
    def _known_data(cls, value: PicturesConfig | None, info: ValidationInfo) -> PicturesConfig | None:
        names = list(type(info.data["data"]).model_fields) if "data" in info.data else None
        if value is not None and names is not None and value.data not in names:
            raise ValueError(f"no data set is named {value.data!r}{_suggest(value.data, names)}")
        return value

    @property
    def datasets(self) -> dict[str, Section]:
        return {name: getattr(self.data, name) for name in type(self.data).model_fields}

    @property
    def task_settings(self) -> dict[str, TaskSettings]:
        return {name: getattr(self.tasks, name) for name in type(self.tasks).model_fields}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[EvalRecipe, Path]:
    """The recipe at `path`, overrides applied and everything checked, and the file that it was read from."""
    found = documents.find_document(path)
    data = documents.read(found, overrides)
    return documents.validate(data, schema_of(data), source=str(found), hint=HELP), found


def schema_of(document: dict[str, Any]) -> type[EvalRecipe]:
    """The schema of one document: `data.NAME` obeys its kind's, `tasks.NAME` its task's, so every key has a path."""
    data = document.get("data")
    names = [str(name) for name in data] if isinstance(data, dict) else []
    kinds = {kind: _with_expectation(module.Config) for kind, module in DATASETS.items()}
    tasks = {name: _with_known_data(module.Settings, names) for name, module in TASKS.items()}
    return pydantic.create_model(
        "Recipe",
        __base__=EvalRecipe,
        data=(_sections(data, "kind", kinds), ...),
        tasks=(_sections(document.get("tasks"), "task", tasks), ...),
    )


def _with_expectation(config: type[Section]) -> type[Section]:
    """A data set's schema, and what the whole of it is known to be."""
    return pydantic.create_model(config.__name__, __base__=config, expect=(ExpectConfig, ExpectConfig()))


def _with_known_data(settings: type[TaskSettings], names: list[str]) -> type[TaskSettings]:
    """A task's schema that accepts the data sets of this document only."""

    def known(value: str) -> str:
        if value not in names:
            raise ValueError(f"no data set is named {value!r}{_suggest(value, names)}")
        return value

    return pydantic.create_model(
        settings.__name__, __base__=settings, __validators__={"known": field_validator("data")(known)}
    )


def _sections(given: Any, key: str, schemas: dict[str, type[Section]]) -> Any:
    """A model with a field for each name that the document gives; its type is what the entry's `key` asks for."""
    if not isinstance(given, dict) or not given:
        return _failing(f"expected entries by name, each with its {key}: {', '.join(schemas)}")
    odd = [name for name in map(str, given) if not re.fullmatch(r"[A-Za-z][\w-]*", name) or hasattr(Section, name)]
    if odd:
        return _failing(f"cannot be used as names: {', '.join(odd)} (letters, digits, - and _; not a Python method's)")
    fields: dict[str, Any] = {}
    for name, entry in given.items():
        chosen = entry.get(key) if isinstance(entry, dict) else None
        if isinstance(chosen, str) and chosen in schemas:
            fields[str(name)] = schemas[chosen]
        else:
            about = f"is missing its {key}" if chosen is None else f"unknown {key} {chosen!r}"
            fields[str(name)] = _failing(about + _suggest(chosen, list(schemas)))
    return pydantic.create_model(key, __base__=Section, **{name: (kind, ...) for name, kind in fields.items()})


def _failing(message: str) -> Any:
    """A type that no value has, and says why."""

    def fail(value: Any) -> Any:
        raise ValueError(message)

    return Annotated[Any, BeforeValidator(fail)]


def _suggest(given: Any, known: list[str]) -> str:
    near = difflib.get_close_matches(str(given), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there is {', '.join(known) or 'none'}"


def keys_text() -> str:
    """Every key of an evaluation recipe, for `--help`."""
    rows = [row for row in documents.keys(EvalRecipe) if row[0] not in ("data", "tasks")]
    for section, key, modules, schema in (("data", "kind", DATASETS, "Config"), ("tasks", "task", TASKS, "Settings")):
        for name, module in modules.items():
            rows.append((f"{section}.NAME: {{{key}: {name}, ...}}", "", "", ""))
            rows += [("  " + path, *rest) for path, *rest in documents.keys(getattr(module, schema)) if path != key]
        if section == "data":
            rows.append(("and of every data set", "", "", ""))
            rows += [("  " + path, *rest) for path, *rest in documents.keys(ExpectConfig, "expect.")]
    lines = []
    for path, _, default, description in rows:
        lines.append((f"  {path}{f' = {default}' if default else ''}".ljust(40) + f"  {description}").rstrip())
    return "\n".join(lines)
