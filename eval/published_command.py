"""Turns published figures into a listing, and says of every published Δm% whether it follows from its own row."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping

from eval.published import Finding, Published, check, find, load

ARROWS = {"higher": "↑", "lower": "↓"}


def main(argv: list[str]) -> int:
    """The command; returns its exit status: 0, or with --strict 1 where a published Δm% does not follow."""
    parser = argparse.ArgumentParser(
        prog="python -m eval published",
        description="Published figures of agglomerative vision models with their sources, and whether every published "
        "Δm%% follows from the figures printed beside it.",
        epilog="A row is a baseline too: python -m eval delta TABLE.csv --baseline published:NAME",
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="tables, models or TABLE/MODEL (default: all)")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if some Δm%% listed does not follow")
    arguments = parser.parse_args(argv)
    published = load()
    rows = [row for name in arguments.names for row in find(published, name)]
    chosen: dict[str, list[str]] = {}
    for table, model in rows or [(key, row) for key, entry in published.tables.items() for row in entry.models]:
        if model not in chosen.setdefault(table, []):
            chosen[table].append(model)
    findings = [f for table, models in chosen.items() for f in check(published, table) if f.model in models]
    if arguments.json:
        print(json.dumps(_as_json(published, chosen, findings), indent=1, ensure_ascii=False))
    else:
        print("\n".join(_lines(published, chosen, findings)))
    return 1 if arguments.strict and not all(finding.follows for finding in findings) else 0


def _as_json(published: Published, chosen: Mapping[str, list[str]], findings: list[Finding]) -> dict:
    tables = {}
    for name, models in chosen.items():
        entry = published.tables[name]
        source = published.sources[entry.source].model_dump()
        rows = {model: entry.models[model] for model in models}
        tables[name] = entry.model_dump() | {"source": source, "models": rows}
    return {"certainty": published.certainty, "tables": tables, "check": [finding._asdict() for finding in findings]}


def _lines(published: Published, chosen: Mapping[str, list[str]], findings: list[Finding]) -> Iterator[str]:
    for name, models in chosen.items():
        entry = published.tables[name]
        yield from (name, f"  {published.source(name)}", f"  {entry.protocol}")
        if entry.note:
            yield f"  {entry.note}"
        width = max(map(len, models))
        for number, column in enumerate(entry.columns, start=1):
            unit = f" ({column.unit})" if column.unit else ""
            yield f"  [{number}] {column.metric} {ARROWS[column.direction]}{unit}" + f"  {column.data}".rstrip()
        for model in models:
            cells = ["–" if v is None else f"{v:.{c.decimals}f}" for c, v in zip(entry.columns, entry.models[model])]
            marks = [f"{metric}: {word}" for metric, word in entry.uncertain.get(model, {}).items()]
            yield f"    {model.ljust(width)}  " + "  ".join(cells) + (f"   ({'; '.join(marks)})" if marks else "")
        own = [finding for finding in findings if finding.table == name]
        if own:
            yield f"  published Δm% against {own[0].baseline}:"
            yield from (f"    {finding}" for finding in own)
        yield ""
    failing = [finding for finding in findings if not finding.follows]
    names = f"; not {', '.join(f'{finding.table}/{finding.model}' for finding in failing)}" if failing else ""
    yield f"published Δm%: {len(findings) - len(failing)} of {len(findings)} follow from their own rows{names}"
