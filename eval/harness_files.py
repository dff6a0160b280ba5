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
from pathlib import Path
from typing import Any, NamedTuple

from teachers.errors import UserError

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
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}", expected=EXPECTED) from None
    if isinstance(document, dict) and isinstance(document.get("results"), dict):
        found = _harness(document, path)
    elif (dataset := _dataset(path)) is not None:
        found = [_sheet(dataset, text if document is None else [document], path)]
    else:
        todo = f"VLMEvalKit's data sets that are known: {', '.join(SHEETS)}" if _vlmevalkit(path) else None
        raise UserError(f"{path} is no result file that can be read", expected=EXPECTED, todo=todo)
    for benchmark in found:
        benchmark.facts |= {"file": str(path), "sha256": hashlib.sha256(content).hexdigest()}
    return found


# --- lm-evaluation-harness and lmms-eval -----------------------------------------------------------------------------


def _harness(document: dict[str, Any], path: Path) -> list[Benchmark]:
    key = next((key for key in VERSIONS if key in document), "lm_eval_version")  # neither: an old file of either
    name = VERSIONS[key]
    facts = {
        "harness version": document.get(key), "harness commit": document.get("git_hash"),
        "date": _date(document.get("date")), "model": document.get("model_name"),
    }  # fmt: skip
    groups = {task: below for task, below in (document.get("group_subtasks") or {}).items() if below}
    found = {}
    for task, row in document["results"].items():
        figures = _figures(task, row, document, path)
        if figures:
            conditions = {
                "harness": name, "version": _of(document, "versions", task), "n-shot": _of(document, "n-shot", task)
            }  # fmt: skip
            found[task] = Benchmark(task, figures, conditions, _samples(document, task, groups), facts=dict(facts))
    if not found:
        raise UserError(f"{path} holds no figure", expected='results: {TASK: {"METRIC,FILTER": number}}')
    for group, below in groups.items():
        for task in set(below) & set(found) if group in found else ():
            found[task].subtask = True
    return list(found.values())


def _figures(task: str, row: Any, document: dict[str, Any], path: Path) -> dict[str, Figure]:
    """Metric → figure, the main one first; what is not a number (names, `N/A`, submissions) is left out."""
    figures: dict[str, Figure] = {}
    for key, value in row.items() if isinstance(row, dict) else ():
        metric, _, filtered = key.partition(",")
        if "_stderr" in metric or metric in LEFT_OUT or not _is_number(value):
            continue
        scale = next((scale for pattern, scale in SCALES.items() if _fits((task, metric), pattern)), RAW)
        figure = _scaled(value, scale, f"{path}: {task} {key}")
        figure.direction = _direction(task, metric, scale, document, path)
        figure.stderr = _error(row.get(f"{metric}_stderr,{filtered}"), scale)
        figures[metric if filtered in ("none", "") else f"{metric} ({filtered})"] = figure
    main = next((name for wanted in MAIN for name in figures if name.split(" ")[0] == wanted), None)
    return {main: figures[main]} | figures if main else figures


def _error(value: Any, scale: Scale) -> float | None:
    """A standard error, in the figure's unit; None for what is none (`N/A`, or the NaN of a single question)."""
    return scale.factor * value if _is_number(value) and 0 <= value < math.inf else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits(given: Sequence[str], pattern: Sequence[str]) -> bool:
    return all(fnmatchcase(word, wanted) for word, wanted in zip(given, pattern))


def _direction(task: str, metric: str, scale: Scale, document: dict[str, Any], path: Path) -> str:
    said = (_of(document, "higher_is_better", task) or {}).get(metric)
    if isinstance(said, bool):
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


def _samples(document: dict[str, Any], task: str, groups: dict[str, list[str]]) -> int:
    """Questions behind a task, or behind the tasks of a group."""
    own = (document.get("n-samples") or {}).get(task)
    if own is None:
        return sum(_samples(document, below, groups) for below in groups.get(task, ()))
    return int(own["effective"] if isinstance(own, dict) else own)


def _of(document: dict[str, Any], section: str, task: str) -> Any:
    return (document.get(section) or {}).get(task)


def _date(given: Any) -> str:
    """Seconds since 1970, or text as the file has it."""
    if isinstance(given, int | float):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(given))
    return "" if given is None else str(given)


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
    rows = list(csv.DictReader(io.StringIO(content))) if isinstance(content, str) else content
    wanted = [row for row in rows if sheet.row is None or row.get(sheet.row[0]) == sheet.row[1]]
    if not wanted or sheet.columns[0] not in wanted[0]:
        where = f"a row whose {sheet.row[0]} is {sheet.row[1]}, and in it " if sheet.row else ""
        raise UserError(f"{path} has no {sheet.columns[0]}", expected=f"{where}{', '.join(sheet.columns)}")
    row, figures = wanted[0], {}
    for column in sheet.columns:
        try:
            value = float(row[column])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: {column} is {row.get(column)!r}", expected="a number") from None
        figures[column] = _scaled(value, sheet.scale, f"{path}: {column}")
    facts = {"harness version": None, "date": ""}
    questions = int(float(row["tot"])) if str(row.get("tot") or "").strip() else 0
    return Benchmark(dataset, figures, {"harness": "VLMEvalKit"}, questions, facts=facts)
