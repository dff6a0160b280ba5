"""Turns a result file of a harness for vision-language models into benchmarks with figures, on one scale each.

Which scale a file uses is not guessed from its values (0.9 may be a share or a bad percentage): tables say it, and a
value that is off the scale is an error. Formats, as the harnesses write them:

lm-evaluation-harness, lmms-eval   JSON: results: {TASK: {"METRIC,FILTER": value, "METRIC_stderr,FILTER": value}},
                                   higher_is_better, n-samples, n-shot, versions, group_subtasks, date
VLMEvalKit                         MODEL_DATASET_acc.csv, MODEL_DATASET[_JUDGE]_score.csv or _score.json
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from radio_distill.documents import validate
from teachers.errors import UserError
from teachers.section import Section

EXPECTED = (
    "a results JSON of lm-evaluation-harness or lmms-eval, or VLMEvalKit's MODEL_DATASET_acc.csv, _score.csv or "
    "_score.json"
)


class Scale(NamedTuple):
    """How a file writes a metric."""

    factor: float  # figure = factor · value
    unit: str
    most: float  # the largest value that the scale has
    direction: str | None = "higher"  # None: only a file can say it


SHARE, PERCENT = Scale(100.0, "%", 1.0), Scale(1.0, "%", 100.0)
POINTS = Scale(1.0, "", math.inf)
RAW = Scale(1.0, "", math.inf, None)

# lm-evaluation-harness and lmms-eval: (task, metric) → scale, the first pattern that fits; all others are RAW. What
# lmms-eval's tasks write under one name on several scales (aAcc, gpt_eval_score of other tasks) is RAW, too.
SCALES = {
    ("mmbench*", "gpt_eval_score"): PERCENT, ("mmvet*", "gpt_eval_score"): PERCENT,
    ("mvbench*", "mvbench_accuracy"): PERCENT, ("videomme*", "videomme_perception_score"): PERCENT,
    ("mmstar*", "average"): SHARE, ("mme*", "mme_*_score"): POINTS, ("seedbench*", "seed_*"): SHARE,
    ("mmmu*", "mmmu_acc"): SHARE, ("ocrbench", "ocrbench_accuracy"): SHARE, ("chartqa*", "relaxed_*"): SHARE,
    ("pope*", "pope_*"): SHARE,
    ("*", "exact_match"): SHARE, ("*", "anls"): SHARE, ("*", "acc"): SHARE, ("*", "acc_norm"): SHARE,
    ("*", "*perplexity"): Scale(1.0, "", math.inf, "lower"),
}  # fmt: skip
MAIN = (  # of several metrics of a benchmark, the one that counts; where it has none of these, its first one
    "pope_f1_score", "mme_perception_score", "mme_percetion_score", "relaxed_overall", "seed_image", "average",
)  # fmt: skip
LEFT_OUT = ("sample_len", "pope_yes_ratio")  # numbers of which neither more nor less is better
VERSIONS = {"lmms_eval_version": "lmms-eval", "lm_eval_version": "lm-evaluation-harness"}  # key → who wrote it


def _or_empty(value: Any) -> Any:
    return {} if value is None else value


Entries = TypeVar("Entries")
ByTask = Annotated[dict[str, Entries], BeforeValidator(_or_empty)]  # null: as if the key were not there


class Loose(Section):
    """A part of a file that others write: what is not read here may be anything."""

    model_config = ConfigDict(extra="ignore")


class Samples(Loose):
    """How many questions were asked."""

    effective: int = Field(ge=0)

    @model_validator(mode="before")
    @classmethod
    def _or_their_number_alone(cls, value: Any) -> Any:
        return {"effective": value} if _number(value) is not None else value


class HarnessFile(Loose):
    """What is read of a file of lm-evaluation-harness or lmms-eval."""

    results: dict[str, Any]  # task → its row, in which all that is no number is passed over
    higher_is_better: ByTask[dict[str, bool | None] | None] = {}
    samples: ByTask[Samples | None] = Field({}, alias="n-samples")
    shots: ByTask[Any] = Field({}, alias="n-shot")
    versions: ByTask[Any] = {}
    group_subtasks: ByTask[list[str] | None] = {}
    date: str = ""
    model_name: Any = None
    git_hash: Any = None
    lmms_eval_version: Any = None
    lm_eval_version: Any = None

    @field_validator("group_subtasks")
    @classmethod
    def _no_group_inside_itself(cls, value: dict[str, list[str] | None]) -> dict[str, list[str]]:
        groups = {group: below for group, below in value.items() if below}
        try:
            TopologicalSorter(groups).prepare()
        except CycleError as error:
            raise ValueError(f"groups that hold each other: {', '.join(error.args[1])}") from None
        return groups

    @field_validator("date", mode="before")
    @classmethod
    def _in_words(cls, value: Any) -> Any:
        """Seconds since 1970, or text as the file has it."""
        if _number(value) is None:
            return "" if value is None else value
        try:
            return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(value))
        except (ValueError, OverflowError, OSError):
            raise ValueError(f"expected seconds since 1970, or a text, got {value}") from None


class Sheet(NamedTuple):
    """Where VLMEvalKit writes the figures of a data set."""

    scale: Scale
    columns: tuple[str, ...]  # those that are read, the main one first
    row: tuple[str, str] | None = None  # (column, entry) of the row; None: the first


CHOICE, ANSWER = Sheet(SHARE, ("Overall",)), Sheet(PERCENT, ("Overall",))
SHEETS = {
    **dict.fromkeys(("MMBench_DEV_EN", "MMBench_DEV_CN", "MMBench_DEV_EN_V11", "MMBench_DEV_CN_V11"), CHOICE),
    **dict.fromkeys(("CCBench", "SEEDBench_IMG", "SEEDBench2", "SEEDBench2_Plus", "MMStar", "RealWorldQA"), CHOICE),
    **dict.fromkeys(("AI2D_TEST", "AI2D_TEST_NO_MASK", "ScienceQA_VAL", "ScienceQA_TEST", "BLINK"), CHOICE),
    "MMMU_DEV_VAL": Sheet(SHARE, ("Overall",), ("split", "validation")),
    **dict.fromkeys(("TextVQA_VAL", "DocVQA_VAL", "InfoVQA_VAL", "ChartQA_TEST", "VizWiz"), ANSWER),
    **dict.fromkeys(("OCRVQA_TEST", "OCRVQA_TESTCORE", "GQA_TestDev_Balanced"), ANSWER),
    "POPE": Sheet(PERCENT, ("Overall", "acc", "precision", "recall"), ("split", "Overall")),  # Overall is F1
    "HallusionBench": Sheet(PERCENT, ("aAcc", "fAcc", "qAcc"), ("split", "Overall")),
    "MME": Sheet(POINTS, ("perception", "reasoning")),
    "OCRBench": Sheet(PERCENT, ("Final Score Norm",)),
    "MathVista_MINI": Sheet(PERCENT, ("acc",), ("Task&Skill", "Overall")),
    "MMVet": Sheet(PERCENT, ("acc",), ("Category", "Overall")),
}


@dataclass
class Figure:
    """One metric of a benchmark, in `unit`."""

    value: float
    unit: str
    direction: str
    stderr: float | None = None


@dataclass
class Benchmark:
    """What a file says of one benchmark; the first figure is the main one."""

    name: str
    figures: dict[str, Figure]
    conditions: dict[str, Any]  # figures under other ones cannot be compared
    n: int = 0  # questions; 0: the file does not say
    subtask: bool = False  # of a group that has figures itself
    facts: dict[str, Any] = field(default_factory=dict)


def read(path: Path) -> list[Benchmark]:
    """Every benchmark of a result file; `UserError` for a file that is none, or says what cannot be understood."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"{path} cannot be read: {why}", expected=EXPECTED) from None
    try:
        document = json.loads(text) if path.suffix == ".json" else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}", expected=EXPECTED) from None
    if isinstance(document, dict) and isinstance(document.get("results"), dict):
        found = _harness(validate(document, HarnessFile, source=str(path)), path)
    elif (dataset := _dataset(path)) is not None and isinstance(document, dict | None):
        found = [_sheet(dataset, text if document is None else [document], path)]
    else:
        todo = f"VLMEvalKit's data sets that are known: {', '.join(SHEETS)}" if _vlmevalkit(path) else None
        raise UserError(f"{path} is no result file that can be read", expected=EXPECTED, todo=todo)
    for benchmark in found:
        benchmark.facts |= {"file": str(path), "sha256": hashlib.sha256(content).hexdigest()}
    return found


# --- lm-evaluation-harness and lmms-eval -----------------------------------------------------------------------------


def _harness(document: HarnessFile, path: Path) -> list[Benchmark]:
    key = next((key for key in VERSIONS if key in document.model_fields_set), "lm_eval_version")  # an old file: neither
    facts = {
        "harness version": getattr(document, key), "harness commit": document.git_hash, "date": document.date,
        "model": document.model_name,
    }  # fmt: skip
    questions, found = _questions(document), {}
    for task, row in document.results.items():
        figures = _figures(task, row, document, path)
        if figures:
            conditions = {
                "harness": VERSIONS[key], "version": document.versions.get(task), "n-shot": document.shots.get(task)
            }  # fmt: skip
            found[task] = Benchmark(task, figures, conditions, questions.get(task, 0), facts=dict(facts))
    if not found:
        raise UserError(f"{path} holds no figure", expected='results: {TASK: {"METRIC,FILTER": number}}')
    for group, below in document.group_subtasks.items():
        for task in set(below) & set(found) if group in found else ():
            found[task].subtask = True
    return list(found.values())


def _questions(document: HarnessFile) -> dict[str, int]:
    """Task → questions behind it; a group of which the file does not say it has those of its tasks."""
    found = {task: samples.effective for task, samples in document.samples.items() if samples is not None}
    for task in TopologicalSorter(document.group_subtasks).static_order():  # what is in a group comes before it
        found.setdefault(task, sum(found[below] for below in document.group_subtasks.get(task, ())))
    return found


def _figures(task: str, row: Any, document: HarnessFile, path: Path) -> dict[str, Figure]:
    """Metric → figure, the main one first; what is not a number (names, `N/A`, submissions) is left out."""
    figures: dict[str, Figure] = {}
    for key, value in row.items() if isinstance(row, dict) else ():
        metric, _, filtered = key.partition(",")
        number = _number(value)
        if "_stderr" in metric or metric in LEFT_OUT or number is None:
            continue
        scale = next((scale for pattern, scale in SCALES.items() if _fits((task, metric), pattern)), RAW)
        figure = _scaled(number, scale, f"{path}: {task} {key}")
        figure.direction = _direction(task, metric, scale, document, path)
        figure.stderr = _error(row.get(f"{metric}_stderr,{filtered}"), scale)
        figures[metric if filtered in ("none", "") else f"{metric} ({filtered})"] = figure
    main = next((name for wanted in MAIN for name in figures if name.split(" ")[0] == wanted), None)
    return {main: figures[main]} | figures if main else figures


def _error(value: Any, scale: Scale) -> float | None:
    """A standard error, in the figure's unit; None for what is none (`N/A`, or the NaN of a single question)."""
    number = _number(value)
    error = math.nan if number is None else scale.factor * number
    return error if 0 <= error < math.inf else None


def _number(value: Any) -> float | None:
    """A number of a JSON file; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf


def _fits(given: Sequence[str], pattern: Sequence[str]) -> bool:
    return all(fnmatchcase(word, wanted) for word, wanted in zip(given, pattern))


def _direction(task: str, metric: str, scale: Scale, document: HarnessFile, path: Path) -> str:
    said = (document.higher_is_better.get(task) or {}).get(metric)
    if said is not None:
        return "higher" if said else "lower"
    if scale.direction is None:
        raise UserError(
            f"{path} does not say whether more is better of {metric} of {task}",
            expected='"higher_is_better": {"TASK": {"METRIC": true or false}}, or a metric that is known',
            todo=f'add "higher_is_better": {{"{task}": {{"{metric}": true}}}} to the file (false: less is better)',
        )
    return scale.direction


def _scaled(value: float, scale: Scale, where: str) -> Figure:
    if not math.isfinite(value):
        raise UserError(f"{where} is {value}", expected="a finite number")
    if math.isfinite(scale.most) and not 0 <= value <= scale.most:
        raise UserError(f"{where} is {value:g}", expected=f"from 0 to {scale.most:g}, as this metric is written")
    return Figure(scale.factor * value, scale.unit, scale.direction or "higher")


# --- VLMEvalKit ------------------------------------------------------------------------------------------------------


def _vlmevalkit(path: Path) -> re.Match[str] | None:
    return re.fullmatch(r"(.+)_(acc|score)", path.stem) if path.suffix in (".csv", ".json") else None


def _dataset(path: Path) -> str | None:
    """The known data set that a file is named after, the longest where several fit."""
    found = _vlmevalkit(path)
    inside = f"_{found[1]}_" if found else ""
    return max((name for name in SHEETS if f"_{name}_" in inside), key=len, default=None)


def _sheet(dataset: str, content: str | list[dict[str, Any]], path: Path) -> Benchmark:
    sheet = SHEETS[dataset]
    try:
        rows = list(csv.DictReader(io.StringIO(content))) if isinstance(content, str) else content
    except csv.Error as error:
        raise UserError(f"{path} is damaged: {error}", expected=EXPECTED) from None
    wanted = [row for row in rows if sheet.row is None or row.get(sheet.row[0]) == sheet.row[1]]
    if not wanted or sheet.columns[0] not in wanted[0]:
        where = f"a row whose {sheet.row[0]} is {sheet.row[1]}, and in it " if sheet.row else ""
        raise UserError(f"{path} has no {sheet.columns[0]}", expected=f"{where}{', '.join(sheet.columns)}")
    row = wanted[0]
    figures = {column: _scaled(_entry(row, column, path), sheet.scale, f"{path}: {column}") for column in sheet.columns}
    facts = {"harness version": None, "date": ""}
    questions = (
        _scaled(_entry(row, "tot", path), POINTS, f"{path}: tot").value if str(row.get("tot") or "").strip() else 0
    )
    return Benchmark(dataset, figures, {"harness": "VLMEvalKit"}, int(questions), facts=facts)


def _entry(row: dict[str, Any], column: str, path: Path) -> float:
    try:
        return float(row[column])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{path}: {column} is {row.get(column)!r}", expected="a number") from None
