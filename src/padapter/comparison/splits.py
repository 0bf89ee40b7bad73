"""The data that a comparison reads: whether they are there, and how many rows they have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from padapter.comparison.cells import Cell
from padapter.data.readers import ANNOTATION_SUFFIXES, RawRow
from padapter.data.schema import Field, parse_row
from padapter.data.schemes import scheme_of
from padapter.data.source import Source
from padapter.data.sources import open_source
from padapter.errors import UserError
from padapter.tasks import get_task

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: Data, split, task.
SplitName = tuple[str, str, str]


@dataclass(frozen=True)
class Split:
    """A split of a data set that some cell reads.

    Attributes:
        spec: the data.
        name: of the split.
        rows: number of rows that can be read; 0 if it is missing.
        problem: what is wrong, empty if nothing is.
        sequences: mean number of training sequences of a row (distinct answers or captions); 0 if unknown.
        unseen: why it was not looked at although nothing is wrong, empty if it was.
    """

    spec: str
    name: str
    rows: int
    problem: str = ""
    sequences: float = 0.0
    unseen: str = ""

    def line(self) -> str:
        """What was found, as text."""
        return f"{self.spec} [{self.name}]: {self.problem or self.unseen or f'{self.rows:,} rows'}"


def find_splits(cells: Sequence[Cell]) -> dict[SplitName, Split]:
    """Every split that some cell reads, looked at once: (data, split, task) -> what was found."""
    wanted: dict[SplitName, None] = {}
    for cell in cells:
        options = cell.train_options
        wanted[(options.train, options.train_split, options.task)] = None
        if options.eval is not None:
            wanted[(options.eval, options.eval_split, options.task)] = None
    return {item: _split(*item) for item in wanted}


def _split(spec: str, split: str, task_name: str) -> Split:
    """Count the rows of a split and the files they name; nothing is opened but the annotations."""
    if scheme_of(spec) is None and not Path(spec).expanduser().exists():
        if HUB_ID.fullmatch(spec) and Path(spec).suffix.lower() not in (*ANNOTATION_SUFFIXES, ".ndjson"):
            return Split(spec, split, 0, unseen="a hub id; nothing is fetched here, so nothing is counted")
        return Split(spec, split, 0, "there is no such file or folder here")
    try:
        source = open_source(spec, task_name, split=split)
    except UserError as error:
        return Split(spec, split, 0, str(error).splitlines()[0])
    if source.unanswered:
        return Split(spec, split, 0, source.unanswered)
    task, bad, texts = get_task(task_name), [], 0
    for row in source.rows:
        problem = _row_problem(row, task.fields, source)
        if problem:
            bad.append(f"{source.file}, line {row.line}: {problem}")
        elif row.values is not None:
            texts += len(task.targets(parse_row(row.values, task.fields, official=source.official).values))
    if not source.rows:
        return Split(spec, split, 0, "has no rows")
    sequences = texts / max(len(source.rows) - len(bad), 1)
    problem = f"{len(bad)} of {len(source.rows):,} rows: {bad[0]}" if bad else ""
    return Split(spec, split, len(source.rows), problem, sequences)


def _row_problem(row: RawRow, fields: Sequence[Field], source: Source) -> str:
    """The first thing that is wrong with a row; empty if nothing is."""
    if row.values is None:
        return row.error or "cannot be read"
    for name, message in parse_row(row.values, fields, official=source.official).problems:
        return f"{name}: {message}"
    try:
        source.images.locate(row.values.get("image"))
    except UserError as error:
        return f"image: {error}"
    return ""
