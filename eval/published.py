"""Turns `recipes/eval/baselines.json` into published figures with sources, checks their Δm%, and lends their rows.

A row's name is TABLE/MODEL, or MODEL where one table has it; `published:NAME` is a baseline. Needs no torch.
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from eval.delta_m import Metric, Table, relative
from eval.sides import mean
from radio_distill.documents import validate
from teachers.errors import UserError
from teachers.section import Section

FILE = "eval/baselines.json"  # in the package `recipes`
PREFIX = "published:"
Certainty = Literal["paper", "released", "secondary"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Source(Section):
    """A paper."""

    title: str
    arxiv: str = Field(pattern=r"^\d{4}\.\d{4,5}$")
    venue: str

    def __str__(self) -> str:
        return f"{self.title} (arXiv {self.arxiv}, {self.venue})"


class Column(Section):
    """A metric as it was published."""

    group: str
    name: str
    direction: Literal["higher", "lower"]
    unit: str
    decimals: int = Field(ge=0, description="that are printed: half a unit of the last one is not known")
    data: str = Field("", description="data set")

    @property
    def metric(self) -> Metric:
        return Metric(self.group, self.name)


class Claim(Section):
    """The Δm% that a table prints for some of its rows."""

    baseline: str
    decimals: int = Field(ge=0)
    printed: dict[str, Finite]


class PublishedTable(Section):
    """One table of a paper, or the part of it that is one protocol: a row a model, None where nothing is printed."""

    source: str
    where: str = Field(description="in the source: which table")
    certainty: Certainty = Field(description="of all its figures; see the legend")
    protocol: str
    note: str = ""
    relative: bool = Field(False, description="its figures are Δ% against the claim's baseline already")
    columns: list[Column]
    models: dict[str, list[Finite | None]]
    uncertain: dict[str, dict[str, Certainty]] = Field(default_factory=dict, description="figures less sure than most")
    delta: Claim | None = None

    @model_validator(mode="after")
    def _of_one_piece(self) -> PublishedTable:
        names = [column.name for column in self.columns]
        if len({column.metric for column in self.columns}) < len(names):
            raise ValueError("two columns have one group and name")
        for model, values in self.models.items():
            if len(values) != len(names):
                raise ValueError(f"{model} has {len(values)} figures, the table {len(names)} columns")
        claimed = {self.delta.baseline, *self.delta.printed} if self.delta else set()
        odd = sorted((claimed | set(self.uncertain)) - set(self.models))
        odd += sorted({name for cells in self.uncertain.values() for name in cells} - set(names))
        if odd:
            raise ValueError(f"neither a row nor a column of the table: {', '.join(odd)}")
        if self.relative and self.delta is None:
            raise ValueError("its figures are Δ%, but there is no delta that names their baseline")
        return self

    def row(self, model: str) -> dict[Metric, float]:
        """The figures that are printed for `model`."""
        cells = zip(self.columns, self.models[model])
        return {column.metric: value for column, value in cells if value is not None}


class Published(Section):
    """The whole file."""

    format: Literal[1]
    about: str
    certainty: dict[Certainty, str] = Field(description="what each word means")
    sources: dict[str, Source]
    tables: dict[str, PublishedTable]

    @field_validator("tables")
    @classmethod
    def _with_sources(cls, value: dict[str, PublishedTable], info: ValidationInfo) -> dict[str, PublishedTable]:
        lost = sorted({table.source for table in value.values()} - set(info.data.get("sources", {})))
        if lost:
            raise ValueError(f"no source is named {', '.join(lost)}")
        lost = sorted({table.certainty for table in value.values()} - set(info.data.get("certainty", {})))
        if lost:
            raise ValueError(f"the legend does not say what {', '.join(lost)} means")
        return value

    def source(self, table: str) -> str:
        """Where a table stands, in words."""
        entry = self.tables[table]
        return f"{self.sources[entry.source]}, {entry.where}; {self.certainty[entry.certainty]}"


class Finding(NamedTuple):
    """A published Δm% beside what its own row gives: `low` and `high` are what the unrounded figures could give."""

    table: str
    model: str
    baseline: str
    printed: float
    computed: float
    low: float
    high: float
    follows: bool

    def __str__(self) -> str:
        verdict = "follows" if self.follows else "does NOT follow from its own row"
        possible = f"{self.low:.3f} to {self.high:.3f} before rounding"
        return f"{self.model}: printed {self.printed:.2f}, computed {self.computed:.3f} ({possible}): {verdict}"


def load(path: str | Path | None = None) -> Published:
    """The shipped figures, or those at `path`; raises `UserError` with every mistake of the file."""
    return _shipped() if path is None else _read(Path(path))


@cache
def _shipped() -> Published:
    return _read(Path(str(importlib.resources.files("recipes"))) / FILE)


def _read(path: Path) -> Published:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} holds a {type(document).__name__}", expected="an object: format, sources, tables")
    return validate(document, Published, source=str(path), hint="see the other tables of recipes/eval/baselines.json")


def find(published: Published, name: str) -> list[tuple[str, str]]:
    """(table, model) of all rows that `name` means: a table's, a model's, or the one of TABLE/MODEL."""
    table, separator, model = name.partition("/")
    rows = [(key, row) for key, entry in published.tables.items() for row in entry.models]
    chosen = [(key, row) for key, row in rows if name in (key, row) or (separator and (key, row) == (table, model))]
    if chosen:
        return chosen
    known = sorted({*published.tables, *(row for _, row in rows), *("/".join(row) for row in rows)})
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    raise UserError(
        f"nothing published is named {name!r}",
        expected=f"such as {', '.join(near)}" if near else "a table, a model, or TABLE/MODEL",
        todo="python -m eval published lists all",
    )


def check(published: Published, table: str) -> list[Finding]:
    """Every Δm% that `table` prints against the one that its own figures give.

    A figure printed with d decimals stands for anything within half a unit of the last one, the baseline's too; a claim
    follows if some such figures give what is printed, itself rounded.
    """
    entry = published.tables[table]
    if entry.delta is None:
        return []
    findings = []
    for model, printed in entry.delta.printed.items():
        computed, low, high = _delta(entry, model, entry.delta.baseline)
        slack = 0.5 * 10.0**-entry.delta.decimals + 1e-9
        follows = low - slack <= printed <= high + slack
        findings.append(Finding(table, model, entry.delta.baseline, printed, computed, low, high, follows))
    return findings


def _delta(table: PublishedTable, model: str, baseline: str) -> tuple[float, float, float]:
    """Δm% of a row, and the least and the most that it could be before the figures were rounded."""
    groups: dict[str, list[tuple[float, float, float]]] = {}
    for column, value, base in zip(table.columns, table.models[model], table.models[baseline]):
        where = f"{model} against {baseline}, {column.metric}"
        if value is None or base is None:
            raise UserError(f"{where}: nothing is printed, so Δm% cannot be checked", expected="a complete row")
        groups.setdefault(column.group, []).append(_bounds(table.relative, column, value, base, where))
    overall = [mean(mean(figure[part] for figure in own) for own in groups.values()) for part in range(3)]
    return overall[0], overall[1], overall[2]


def _bounds(is_relative: bool, column: Column, value: float, base: float, where: str) -> tuple[float, float, float]:
    half = 0.5 * 10.0**-column.decimals
    if is_relative:
        return value, value - half, value + half
    ends = [
        relative(value + half, base - half, column.direction, where),
        relative(value - half, base + half, column.direction, where),
    ]
    return relative(value, base, column.direction, where), min(ends), max(ends)


def one(published: Published, name: str) -> tuple[str, str]:
    """The (table, model) of a name, with or without `published:`, that must mean one row."""
    rows = find(published, name.removeprefix(PREFIX))
    if len(rows) > 1:
        raise UserError(f"{name} is not one row", expected="one of " + ", ".join(f"{PREFIX}{t}/{m}" for t, m in rows))
    return rows[0]


def source_of(name: str) -> str:
    """Where the published row `name` stands and how it was measured, for whoever prints a Δm% against it."""
    published = load()
    table = one(published, name)[0]
    return f"{published.source(table)}. {published.tables[table].protocol}"


def check_groups(name: str, groups: Collection[str]) -> None:
    """Raise `UserError` where the row `name` cannot have a metric in common with a table that will have `groups`."""
    _, label, row = _figures(name)
    theirs = dict.fromkeys(metric.group for metric in row)
    if not set(groups) & set(theirs):
        have = f"which has {', '.join(groups)}" if groups else "of which nothing counts"
        raise UserError(
            f"{label} shares no group with the table, {have}",
            expected=f"one of the groups {', '.join(theirs)}",
            todo="python -m eval published lists all rows; a recipe's key tasks.NAME.group names a task's group",
        )


def _figures(name: str) -> tuple[PublishedTable, str, dict[Metric, float]]:
    """The table of the row `name`, what the row is called, and its figures; `UserError` where they are Δ% already."""
    published = load()
    key, model = one(published, name)
    entry, label = published.tables[key], f"{PREFIX}{key}/{model}"
    if entry.relative:
        raise UserError(f"{label} holds Δ% against {entry.delta.baseline}, not figures", expected="a row with figures")
    return entry, label, entry.row(model)


def add_published(table: Table, name: str, units: Mapping[Metric, str] | None = None) -> str:
    """Add the published row `name` (with or without `published:`) to `table`; returns what it is called there.

    Metrics are matched by group and name; what only one of the two has stays a missing cell, with its reason. A
    published figure is taken as exact, so the error of a Δ% against it is the model's own.

    Args:
        units: of the table's metrics, where they are known, so that 0.5 is not compared with 50 %.

    Raises `UserError`, and leaves the table as it was, where directions or units differ, where no metric is common, or
    where the row holds Δ% already.
    """
    entry, label, row = _figures(name)
    columns = [column for column in entry.columns if column.metric in row]
    _check_alike(table, label, columns, units or {})
    lengths = {metric: len(values) for (_, metric), values in table.resamples.items()}
    for column in columns:
        table.add(label, column.metric, column.direction, row[column.metric])
        if column.metric in lengths:  # exact: the same on every resample
            table.resamples[label, column.metric] = np.full(lengths[column.metric], row[column.metric])
    for metric in table.metrics:
        if (label, metric) not in table.values:
            table.absent[label, metric] = "not published"
    return label


def _check_alike(table: Table, label: str, columns: Sequence[Column], units: Mapping[Metric, str]) -> None:
    """Raise `UserError` where no column is the table's too, or one that is has another direction or unit there."""
    shared = [column for column in columns if column.metric in table.directions]
    if not shared:
        raise UserError(
            f"{label} shares no metric with the table, which has {'; '.join(map(str, table.metrics)) or 'none'}",
            expected=f"some of the same group and name: {'; '.join(str(column.metric) for column in columns)}",
        )
    for column in shared:
        direction, unit = table.directions[column.metric], units.get(column.metric, column.unit)
        if direction != column.direction:
            raise UserError(f"{label}, {column.metric}: direction {column.direction!r}, but {direction!r} in the table")
        if unit != column.unit:
            raise UserError(f"{label}, {column.metric}: is in {column.unit or 'no unit'}, the table's in {unit!r}")
