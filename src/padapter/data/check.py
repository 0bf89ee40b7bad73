"""Find everything that is wrong with a data set before a long run starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from padapter.data.images import ImageError
from padapter.data.schema import Field, FieldError, ParsedRow, parse_row
from padapter.data.sources import Source, available_splits, open_source
from padapter.errors import UserError


class DataTask(Protocol):
    """The part of a task that data need: its name and its fields."""

    @property
    def name(self) -> str:
        """The name of the task."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """The columns besides id and image."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, and what.

    Attributes:
        file: The annotation file (or the spec of a table).
        line: The line where the row begins (of a table: its row, from 1), or None for the file as a whole.
        field: The field, or None for the row as a whole.
        message: What is wrong.
        fatal: The rows after it could not be read, or no row can be used: not a matter of skipping rows.
    """

    file: str
    line: int | None
    field: str | None
    message: str
    fatal: bool = False

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{where}: {self.field}: {self.message}" if self.field else f"{where}: {self.message}"


@dataclass
class Report:
    """The outcome of a check.

    Attributes:
        spec: The data that were checked.
        rows: Rows read.
        good: Rows that can be used.
        dropped: Rows left out on purpose (label ``-``, exact repeats); each kind has a note.
        problems: Everything that is wrong.
        notes: What is worth knowing but stops nothing.
        splits: Rows per split, if several were checked.
    """

    spec: str
    rows: int = 0
    good: int = 0
    dropped: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    splits: dict[str, int] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """Rows that cannot be used."""
        return self.rows - self.good - self.dropped

    @property
    def ok(self) -> bool:
        """True if there is no problem."""
        return not self.problems

    def format(self, limit: int | None = None) -> str:
        """The report as text.

        Args:
            limit: Show at most this many problems.
        """
        shown = self.problems if limit is None else self.problems[:limit]
        lines = [f"{self.spec}: {self.rows} rows, {self.good} good, {self.bad} bad, {self.dropped} left out"]
        if len(self.splits) > 1:
            lines.append("  splits: " + ", ".join(f"{name} {rows}" for name, rows in self.splits.items()))
        lines += [f"  problem: {problem}" for problem in shown]
        if len(shown) < len(self.problems):
            lines.append(f"  ... and {len(self.problems) - len(shown)} more problems")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True)
class Example:
    """One usable row: clean values and the key of its picture."""

    id: str
    image: str
    values: dict[str, Any]


def check_data(spec: str, task: DataTask, *, split: str | None = None, seed: int = 0, decode: bool = True) -> Report:
    """Check every row and decode every picture of a data set, and report all problems at once.

    Args:
        spec: The data (see ``docs/data.md``).
        task: The task they are for.
        split: One split, or None for every split of a folder.
        seed: For built-in worlds.
        decode: False where the pictures have been decoded just now: only header and end of each are read.

    Returns:
        The report; ``report.ok`` is False if there is any problem.

    Raises:
        UserError: There is nothing to check: no such file, no such split, not data.
    """
    return survey(spec, task, split=split, seed=seed, decode=decode).report


@dataclass(frozen=True)
class Survey:
    """Everything that a check has seen.

    Attributes:
        report: What it found.
        sources: Rows and pictures by split.
        examples: Usable rows by split.
    """

    report: Report
    sources: dict[str, Source]
    examples: dict[str, list[Example]]


def survey(spec: str, task: DataTask, *, split: str | None = None, seed: int = 0, decode: bool = True) -> Survey:
    """The same as :func:`check_data`, with the rows that were read."""
    found = available_splits(spec) if split is None else None
    whole = Report(spec)
    sources = {}
    examples = {}
    for name in found or [split or "train"]:
        source = sources[name] = open_source(spec, task.name, split=name, seed=seed)
        report, examples[name] = examine(source, task.fields, decode=decode)
        whole.rows += report.rows
        whole.good += report.good
        whole.dropped += report.dropped
        whole.problems += report.problems
        whole.notes += [f"{name}: {note}" for note in report.notes] if found else report.notes
        whole.splits[name] = report.rows
    whole.notes += _across(sources)
    return Survey(whole, sources, examples)


def examine(source: Source, fields: Sequence[Field], *, decode: bool) -> tuple[Report, list[Example]]:
    """Check the rows of one split.

    Args:
        source: The rows and their images.
        fields: The fields of the task.
        decode: Decode every picture instead of reading header and end.

    Returns:
        The report and the usable rows in order.
    """
    report = Report(source.file, rows=len(source.rows))
    if _refused_as_a_whole(source, fields, report):
        return report, []
    notes: Counter[str] = Counter()
    left_out: set[int] = set()
    parsed = _parse(source, fields, report, notes, left_out)
    _check_ids(source, parsed, report, notes, left_out)
    keys = _check_images(source, report, left_out, decode=decode)
    examples = [Example(str(row.id), keys[index], row.values) for index, row in parsed.items() if index in keys]
    report.dropped = len(left_out)
    report.good = len(examples)
    report.problems.sort(key=lambda problem: (not problem.fatal, problem.line or 0))
    report.notes += [f"{count} rows: {note}" for note, count in sorted(notes.items())]
    unused = sorted(_columns(source) - {"id", "image"} - {name for spec in fields for name in (spec.name, spec.alias)})
    if unused:
        report.notes.append(f"fields that are not used: {', '.join(unused)}")
    return report, examples


def _columns(source: Source) -> set[str]:
    return {str(name) for row in source.rows if row.values for name in row.values}


def _refused_as_a_whole(source: Source, fields: Sequence[Field], report: Report) -> bool:
    """One message instead of one per row where nothing can be used: no rows, or data of another task."""
    if not source.rows:
        report.problems.append(Problem(source.file, None, None, "has no rows", fatal=True))
        return True
    present = _columns(source)
    wanted = {"image": "image"} | {spec.name: spec.title for spec in fields if spec.required}
    aliases = {spec.name: {spec.name, spec.alias} for spec in fields} | {"image": {"image"}}
    missing = [title for name, title in wanted.items() if not aliases[name] & present]
    if missing and present:
        message = (
            f"no row has the field {' or '.join(map(repr, missing))}; fields found: {', '.join(sorted(present))}. "
            f"This task needs {', '.join(wanted.values())}: is this data for another task?"
        )
        report.problems.append(Problem(source.file, None, None, message, fatal=True))
    return bool(missing and present)


def _parse(
    source: Source, fields: Sequence[Field], report: Report, notes: Counter[str], left_out: set[int]
) -> dict[int, ParsedRow]:
    """Rows without a problem, by their place; ``left_out`` collects those that are dropped on purpose."""
    parsed: dict[int, ParsedRow] = {}
    for index, row in enumerate(source.rows):
        if row.values is None:
            report.problems.append(Problem(row.file, row.line, None, row.error or "cannot be read", row.fatal))
            continue
        outcome = parse_row(row.values, fields)
        report.problems += [Problem(row.file, row.line, name, message) for name, message in outcome.problems]
        if outcome.dropped:
            notes[f"{outcome.dropped}, left out"] += 1
            left_out.add(index)
        elif not outcome.problems:
            notes.update(set(outcome.notes))
            parsed[index] = outcome
    return parsed


def _check_ids(
    source: Source, parsed: dict[int, ParsedRow], report: Report, notes: Counter[str], left_out: set[int]
) -> None:
    """Give ids to rows without one; drop exact repeats; refuse one id for different contents."""
    first: dict[str, int] = {}
    for index in list(parsed):
        row = source.rows[index]
        outcome = parsed[index]
        if outcome.id is None:
            outcome.id = f"{Path(source.file).stem}-{index + 1}"
        earlier = first.setdefault(outcome.id, index)
        if earlier == index:
            continue
        del parsed[index]
        if _content(source, earlier) == _content(source, index):
            notes["an exact repeat of an earlier row, left out"] += 1
            left_out.add(index)
        else:
            message = f"{outcome.id!r} was used by line {source.rows[earlier].line} for another content"
            report.problems.append(Problem(row.file, row.line, "id", message))


def _content(source: Source, index: int) -> dict[str, Any]:
    return {name: value for name, value in (source.rows[index].values or {}).items() if name != "id"}


def _check_images(source: Source, report: Report, left_out: set[int], *, decode: bool) -> dict[int, str]:
    """Keys of usable pictures by place of the row.

    Each picture is looked at once, and makes one problem however many rows name it.
    """
    keys: dict[int, str] = {}
    verdicts: dict[str, str | None] = {}
    culprits: dict[str, list[int]] = {}
    for index, row in enumerate(source.rows):
        if row.values is None or index in left_out:
            continue
        try:
            key = source.images.locate(row.values.get("image"))
            if key not in verdicts:
                verdicts[key] = None if source.trusted else _verdict(source, key, decode=decode)
            fault = verdicts[key]
        except ImageError as error:
            key, fault = "", str(error)
        except FieldError as error:
            report.problems.append(Problem(row.file, row.line, "image", str(error)))
            continue
        if fault is None:
            keys[index] = key
        else:
            culprits.setdefault(fault, []).append(row.line)
    for fault, lines in culprits.items():
        also = f" (also named by {len(lines) - 1} later rows)" if len(lines) > 1 else ""
        report.problems.append(Problem(source.file, lines[0], "image", f"{fault}{also}"))
    if culprits and not keys:
        report.notes.append("no image could be used: are the paths relative to the folder of the annotation file?")
    return keys


def _verdict(source: Source, key: str, *, decode: bool) -> str | None:
    try:
        source.images.verify(key, decode=decode)
    except UserError as error:
        return str(error)
    return None


def _named(source: Source) -> set[str]:
    """Images named by any row, good or bad, as far as they exist."""
    named = set()
    for row in source.rows:
        try:
            named.add(source.images.locate((row.values or {}).get("image")))
        except UserError:
            continue
    return named


def _across(sources: dict[str, Source]) -> list[str]:
    """Notes that need all splits: shared images, and images that no split names."""
    notes = []
    named = {split: _named(source) for split, source in sources.items() if source.images.place is not None}
    for first, second in combinations(named, 2):
        shared = named[first] & named[second]
        if shared and sources[first].images.place == sources[second].images.place:
            notes.append(f"{len(shared)} images occur in both {first} and {second}")
    places = {source.images.place: source.images for source in sources.values()}
    unreferenced: list[str] = []
    for place, images in places.items():
        keys = [named[split] for split in named if sources[split].images.place == place]
        unreferenced += images.unreferenced(set().union(*keys))
    if unreferenced:
        some = ", ".join(unreferenced[:5]) + (", ..." if len(unreferenced) > 5 else "")
        notes.append(f"{len(unreferenced)} images without annotation in what was checked: {some}")
    return notes
