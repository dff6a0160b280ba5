"""Turns a CSV file of scores into Δm%, on the console or as JSON: `python -m eval delta TABLE.csv --baseline NAME`.

Columns: model, group, metric, direction (higher or lower is better), value and, optionally, seed. A table of group
figures that are Δ% already has the columns model, group, delta instead.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path

from eval import published
from eval.delta_m import SIGNS, Metric, Row, Table, average_rank, check, compare
from eval.estimate import Estimate
from eval.sides import mean
from teachers.errors import UserError

SCORES = ("model", "group", "metric", "direction", "value")
GROUPS = ("model", "group", "delta")
MOST_SHOWN = 20  # mistakes listed before "and N more"
Groups = dict[str, dict[str, float]]  # model → group → Δ%


def read_csv(path: str | Path) -> Table | Groups:
    """The table at `path`, or model → group → Δ% where its columns are model, group, delta.

    Raises `UserError` with every mistake, each with its line and column.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [(number, row) for number, row in _numbered(csv.reader(file)) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read as CSV: {reason}", expected="a UTF-8 text file") from None
    if not lines:
        raise UserError(f"{path} is empty", expected="a first line " + ",".join(SCORES))
    header = [name.strip().lower() for name in lines[0][1]]
    wanted = GROUPS if "delta" in header else SCORES
    _check_header(path, lines[0][0], header, wanted)
    if len(lines) == 1:
        raise UserError(f"{path} has no rows below its first line", expected=",".join(wanted))
    return _read_groups(path, header, lines[1:]) if wanted is GROUPS else _read_scores(path, header, lines[1:])


def _numbered(reader):
    for row in reader:
        yield reader.line_num, row


def _check_header(path: str | Path, number: int, header: list[str], wanted: tuple[str, ...]) -> None:
    allowed = (*wanted, "seed") if wanted is SCORES else wanted
    problems = [f"column {name!r} is missing" for name in wanted if name not in header]
    problems += [f"column {name!r} is unknown" for name in header if name not in allowed]
    problems += [f"column {name!r} stands there twice" for name in dict.fromkeys(header) if header.count(name) > 1]
    if problems:
        raise UserError(
            f"{path}, line {number}: " + "; ".join(problems),
            expected=",".join(SCORES) + "[,seed]  (or, for figures that are Δ% already: " + ",".join(GROUPS) + ")",
        )


def _cells(path: str | Path, header: list[str], lines: list[tuple[int, list[str]]], enter) -> None:
    """Call `enter(row)` for every line and raise all that it, or the shape of a line, finds wrong."""
    mistakes = []
    for number, cells in lines:
        if len(cells) != len(header):
            mistakes.append(f"line {number}: {len(cells)} cells, expected {len(header)} ({', '.join(header)})")
            continue
        row = {name: cell.strip() for name, cell in zip(header, cells)}
        empty = [name for name in header if not row[name] and name != "seed"]
        if empty:
            hint = " (leave the line out where there is no value)" if {"value", "delta"} & set(empty) else ""
            mistakes.append(f"line {number}, column {empty[0]}: is empty{hint}")
            continue
        try:
            enter(row)
        except UserError as error:
            expected = [f"expected {error.expected}"] if error.expected else []
            mistakes.append(f"line {number}, " + "; ".join([error.what, *expected]))
    if mistakes:
        count = f"{len(mistakes)} mistake" + ("s" if len(mistakes) > 1 else "")
        more = [f"and {len(mistakes) - MOST_SHOWN} more"] if len(mistakes) > MOST_SHOWN else []
        raise UserError("\n  ".join([f"{path}: {count}", *mistakes[:MOST_SHOWN], *more]))


def _number(row: dict[str, str], column: str) -> float:
    value = _finite(row[column])
    if value is None:
        raise UserError(f"column {column}: {row[column]!r} is not a finite number")
    return value


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _read_scores(path: str | Path, header: list[str], lines: list[tuple[int, list[str]]]) -> Table:
    table = Table()

    def enter(row: dict[str, str]) -> None:
        direction = row["direction"].lower()
        if direction not in SIGNS:
            raise UserError(
                f"column direction: {row['model']}, {row['group']} / {row['metric']}: unknown direction {direction!r}",
                expected="higher or lower (is better)",
            )
        seed = row["seed"] if "seed" in row and row["seed"] else None
        table.add(row["model"], Metric(row["group"], row["metric"]), direction, _number(row, "value"), seed)

    _cells(path, header, lines, enter)
    return table


def _read_groups(path: str | Path, header: list[str], lines: list[tuple[int, list[str]]]) -> Groups:
    groups: Groups = {}

    def enter(row: dict[str, str]) -> None:
        own = groups.setdefault(row["model"], {})
        if row["group"] in own:
            raise UserError(f"column group: {row['model']}, {row['group']} is given twice")
        own[row["group"]] = _number(row, "delta")

    _cells(path, header, lines, enter)
    every = list(dict.fromkeys(group for own in groups.values() for group in own))
    for model, own in groups.items():
        absent = [group for group in every if group not in own]
        if absent:
            problem = f"{path}: {model} has no figure for {', '.join(absent)}"
            raise UserError(problem, expected="every group for every model")
    return groups


def main(argv: list[str]) -> int:
    """The command; returns its exit status: 0, 1 where a printed figure does not follow, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m eval delta",
        description=__doc__.splitlines()[0],
        epilog="A model whose cells are incomplete reads n/a; --common averages over the metrics that it shares "
        "with the baseline, and says which are missing.",
    )
    parser.add_argument("table", help="CSV: model,group,metric,direction,value[,seed]  (or model,group,delta)")
    parser.add_argument(
        "--baseline", metavar="NAME",
        help="the model that the others are compared with, or published:NAME (python -m eval published lists them)",
    )  # fmt: skip
    parser.add_argument("--common", action="store_true", help="average over shared metrics instead of answering n/a")
    parser.add_argument("--tolerance", type=float, default=0.0, help="values this close share a rank (rounded inputs)")
    parser.add_argument(
        "--check", action="append", default=[], metavar="MODEL=PUBLISHED", help="does a published Δm%% follow?"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    arguments = parser.parse_args(argv)
    printed = dict(_claim(text) for text in arguments.check)
    if not 0 <= arguments.tolerance < math.inf:
        raise UserError(f"--tolerance {arguments.tolerance:g}", expected="a distance between values: 0, or more")
    table = read_csv(arguments.table)
    if isinstance(table, dict):
        _check_own_baseline(arguments, table)
        overall = {model: mean(own.values()) for model, own in table.items()}
        answer, text = {"baseline": arguments.baseline, "models": _groups_json(table)}, _groups_text(table)
    else:
        if arguments.baseline is None:
            raise UserError("a Δm% needs its baseline", todo=f"add --baseline NAME, one of {', '.join(table.models)}")
        baseline, source = arguments.baseline, None
        if baseline.startswith(published.PREFIX):
            baseline, source = published.add_published(table, baseline), published.source_of(baseline)
        rows = compare(table, baseline, common=arguments.common)
        ranks = average_rank(table, arguments.tolerance)
        overall = {row.model: row.overall.mean if row.overall else None for row in rows}
        models = {row.model: row_json(row, ranks[row.model]) for row in rows}
        answer = {"baseline": baseline, **({"source": source} if source else {}), "models": models}
        text = _rows_text(table, rows, ranks, baseline) + (f"\n\n{baseline} is from {source}" if source else "")
    findings = check(printed, overall)
    if arguments.json:
        print(json.dumps(answer | ({"check": [f._asdict() for f in findings]} if printed else {}), indent=1))
    else:
        print("\n".join([text, *map(str, findings)]))
    return 0 if all(finding.follows for finding in findings) else 1


def _claim(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    value = _finite(number)
    if value is None:
        raise UserError(f"cannot read --check {text!r}", expected="MODEL=NUMBER, such as PRISM=2.29")
    return name, value


def _check_own_baseline(arguments: argparse.Namespace, groups: Groups) -> None:
    """Raise `UserError` for a baseline that a table of Δ% does not hold: what they are against is past changing."""
    if arguments.baseline not in (None, *groups):
        raise UserError(
            f"--baseline {arguments.baseline}: {arguments.table} has no such model, and its figures are Δ% already",
            expected=f"one of {', '.join(groups)}, or no --baseline",
        )


def row_json(row: Row, rank: float | None) -> dict:
    """A row as plain data."""

    def plain(estimate: Estimate | None) -> dict | None:
        if estimate is None:
            return None
        spread = {"standard_error": estimate.error, "interval": estimate.interval, "verdict": estimate.verdict}
        return {"delta": estimate.mean, **spread}

    metrics = [{"group": m.group, "metric": m.name, **(plain(e) or {"delta": None})} for m, e in row.metrics.items()]
    return {
        "overall": plain(row.overall),
        "groups": {group: plain(estimate) for group, estimate in row.groups.items()},
        "metrics": metrics,
        "coverage": row.coverage,
        "missing": {str(metric): reason for metric, reason in row.missing.items()},
        "seeds": list(row.seeds),
        "seeds_left_out": list(row.left_out),
        "paired": row.paired,
        "average_rank": rank,
    }


def _groups_json(groups: Groups) -> dict:
    return {model: {"overall": {"delta": mean(own.values())}, "groups": own} for model, own in groups.items()}


def _groups_text(groups: Groups) -> str:
    lines = ["Δm% (mean of the groups given)"]
    width = max(map(len, groups))
    for model, own in groups.items():
        lines.append(f"  {model.ljust(width)}  {mean(own.values()):+.2f}   ({len(own)} groups)")
    return "\n".join(lines)


def _rows_text(table: Table, rows: list[Row], ranks: dict[str, float | None], baseline: str) -> str:
    lines = [f"Δm% against {baseline} (positive is better; ± is a standard error)"]
    for row in rows:
        estimate = row.overall
        verdict = f"  {estimate.verdict}" if estimate and estimate.error is not None and row.model != baseline else ""
        rank = "n/a" if ranks[row.model] is None else f"{ranks[row.model]:.2f}"
        lines.append(f"\n{row.model}   overall {estimate or 'n/a'}{verdict}   average rank {rank}   {row.coverage}")
        if row.seeds:
            left = f" (left out, not in every cell: {', '.join(row.left_out)})" if row.left_out else ""
            apart = "" if row.paired else ", not paired with the baseline's"
            lines.append(f"  over seeds {', '.join(row.seeds)}{apart}{left}")
        for group, pooled in row.groups.items():
            lines.append(f"  {group}: {pooled or 'n/a'}")
            for metric, delta in row.metrics.items():
                if metric.group == group:
                    arrow = {"higher": "↑", "lower": "↓"}[table.directions[metric]]
                    lines.append(f"    {metric.name} {arrow}  {_value(table, row.model, metric)}  {delta or 'n/a'}")
    return "\n".join(lines)


def _value(table: Table, model: str, metric: Metric) -> str:
    value = table.mean(model, metric)
    return "no score" if value is None else f"{value:g}"
