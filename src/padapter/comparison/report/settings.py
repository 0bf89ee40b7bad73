"""The options of the runs, sorted by what they depend on: nothing, the method, the benchmark, or both."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from padapter.comparison.records import RunRecord
from padapter.comparison.report.analysis import Analysis
from padapter.comparison.report.numbers import MISSING
from padapter.comparison.report.tables import Cell, Column, Row, Table


@dataclass(frozen=True)
class Settings:
    """Tables of options, and the names of those that differ from seed to seed within a cell."""

    tables: tuple[Table, ...]
    by_seed: tuple[str, ...]


def settings(analysis: Analysis) -> Settings:
    """Sort the options of all runs of the table."""
    runs = analysis.runs
    told = {id(run): flat(run.options) for run in runs}
    names = sorted({name for options in told.values() for name in options})
    methods = {entry.name: entry.label for entry in analysis.results.methods}
    benchmarks = {entry.name: entry.label for entry in analysis.results.benchmarks}
    cells = {(m, b): f"{methods[m]}, {benchmarks[b]}" for m in methods for b in benchmarks if analysis.cells[m, b]}
    groups: list[tuple[str, dict[Any, str], Callable[[RunRecord], Any]]] = [
        ("Shared by all runs", {"": "Value"}, lambda run: ""),
        ("By method", methods, lambda run: run.method),
        ("By benchmark", benchmarks, lambda run: run.benchmark),
        ("By method and benchmark", cells, lambda run: (run.method, run.benchmark)),
    ]
    tables, left = [], names
    for title, columns, group_of in groups:
        rows, further = [], []
        for name in left:
            found: dict[Any, set[str]] = {}
            for run in runs:
                found.setdefault(group_of(run), set()).add(told[id(run)].get(name, MISSING))
            if any(len(texts) > 1 for texts in found.values()):
                further.append(name)
                continue
            rows.append(Row(name, tuple(Cell(next(iter(found.get(key, {MISSING})))) for key in columns)))
        if rows:
            tables.append(Table("", title, "Option", tuple(Column(label) for label in columns.values()), tuple(rows)))
        left = further
    return Settings(tuple(tables), tuple(left))


def provenances(analysis: Analysis) -> list[tuple[int, list[tuple[str, str]]]]:
    """Versions and hardware: how many runs, and what they had, most frequent first."""
    groups: dict[str, list[dict[str, str]]] = {}
    for run in analysis.runs:
        told = flat(run.provenance)
        groups.setdefault(json.dumps(told, sort_keys=True), []).append(told)
    ordered = sorted(groups.values(), key=len, reverse=True)
    return [(len(group), list(group[0].items())) for group in ordered if group[0]]


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested options with dotted names and values as text."""
    found: dict[str, str] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found
