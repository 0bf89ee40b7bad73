"""Find everything that is wrong with a data set before a long run starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol, overload

from padapter.data.columns import ColumnRows
from padapter.data.images import ImageError
from padapter.data.readers import RawRow
from padapter.data.report import Problem, Report
from padapter.data.schema import WEIGHT, Field, FieldError, ParsedRow, asked_fields, parse_row
from padapter.data.schemes import scheme_of
from padapter.data.source import Source
from padapter.data.sources import available_splits, open_source
from padapter.data.stores import ImageStore
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
class Example:
    """One usable row: clean values and the key of its picture."""

    id: str
    image: str
    values: dict[str, Any]


@dataclass
class Examples(Sequence[Example]):
    """The usable rows, as columns: half a million objects would take more memory than what they hold.

    Attributes:
        ids: The id of each row.
        images: The key of its picture.
        values: Its clean values, by field.
    """

    ids: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        values = {name: column[index] for name, column in self.values.items()}
        return Example(self.ids[index], self.images[index], values)

    def add(self, key: str, image: str, values: dict[str, Any]) -> None:
        """Take one row; all rows have the same fields."""
        self.ids.append(key)
        self.images.append(image)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def select(self, places: Sequence[int]) -> Examples:
        """Some of the rows."""
        return Examples(
            [self.ids[place] for place in places],
            [self.images[place] for place in places],
            {name: [column[place] for place in places] for name, column in self.values.items()},
        )

    def records(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Id, key of the picture and values of each row."""
        for place, (key, image) in enumerate(zip(self.ids, self.images, strict=True)):
            yield key, image, {name: column[place] for name, column in self.values.items()}


#: What is wrong with pictures, or None, by the place that their keys are relative to and their key.
Verdicts = dict[tuple[str | None, str], str | None]


def check_data(spec: str, task: DataTask, *, split: str | None = None, seed: int = 0, decode: bool = True) -> Report:
    """Check every row and decode every picture of a data set, and report all problems at once.

    Splits whose answers are not public are checked without them.

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
    examples: dict[str, Sequence[Example]]


def survey(spec: str, task: DataTask, *, split: str | None = None, seed: int = 0, decode: bool = True) -> Survey:
    """The same as :func:`check_data`, with the rows that were read."""
    found = available_splits(spec) if split is None else None
    whole = Report(spec)
    sources = {}
    examples: dict[str, Sequence[Example]] = {}
    named: dict[str, tuple[ImageStore, set[str]]] = {}
    verdicts: Verdicts = {}
    remarks = _remarks(spec) if split is None else []
    if remarks and not found:
        raise UserError(f"{spec}: no split can be read:\n" + "\n".join(f"  {remark}" for remark in remarks))
    for name in found or [split or "train"]:
        try:
            source = sources[name] = open_source(spec, task.name, split=name, seed=seed)
        except UserError as error:
            if not found or len(found) == 1:
                raise
            whole.problems.append(Problem(spec, None, name, str(error), fatal=True))
            continue
        fields = asked_fields(task.fields) if source.unanswered else task.fields
        report, examples[name] = examine(source, fields, decode=decode, verdicts=verdicts)
        whole.rows += report.rows
        whole.good += report.good
        whole.dropped += report.dropped
        whole.problems += report.problems
        notes = [*report.notes, *([source.unanswered] if source.unanswered else [])]
        whole.notes += [f"{name}: {note}" for note in notes] if found else notes
        whole.splits[name] = report.rows
        if source.images.place is not None:
            named[name] = (source.images, _named(source))
    whole.notes += [*_across(named), *remarks]
    return Survey(whole, sources, examples)


def _remarks(spec: str) -> list[str]:
    scheme = scheme_of(spec)
    return [] if scheme is None else scheme.remarks(spec)


def examine(
    source: Source,
    fields: Sequence[Field],
    *,
    decode: bool,
    verdicts: Verdicts | None = None,
    for_training: bool = False,
) -> tuple[Report, Examples]:
    """Check the rows of one split.

    Args:
        source: The rows and their images.
        fields: The fields of the task.
        decode: Decode every picture instead of reading header and end.
        verdicts: What is known of pictures from other splits; what is found is added.
        for_training: Leave out rows, and count them, that can only be scored.

    Returns:
        The report and the usable rows in order.
    """
    check = _Check(source, fields, decode, {} if verdicts is None else verdicts, for_training)
    check.go()
    return check.report, check.examples


class _Check:
    """One walk along the rows of a split."""

    def __init__(
        self, source: Source, fields: Sequence[Field], decode: bool, verdicts: Verdicts, for_training: bool
    ) -> None:
        before = sum(source.left_out.values())
        self.source = source
        self.place = source.images.place
        self.fields = fields
        self.decode = decode
        self.verdicts = verdicts
        self.for_training = for_training
        self.report = Report(source.file, rows=len(source.rows) + before, dropped=before)
        self.examples = Examples()
        self.notes = Counter({f"{reason}, left out": count for reason, count in source.left_out.items()})
        self.first: dict[str, int] = {}
        self.culprits: dict[str, tuple[RawRow, int]] = {}
        self.some_picture = False

    def go(self) -> None:
        """Fill report and examples."""
        if not self._refused_as_a_whole():
            for index, row in enumerate(self.source.rows):
                self._look_at(index, row)
            self._report_pictures()
        report, source = self.report, self.source
        report.good = len(self.examples)
        report.problems.sort(key=lambda problem: (not problem.fatal, problem.line or 0))
        if source.unit != "line":
            report.problems = [replace(problem, unit=source.unit) for problem in report.problems]
        report.notes += source.notes
        report.notes += [f"{count} rows: {note}" for note, count in sorted(self.notes.items())]
        weights = [weight for weight in self.examples.values.get(WEIGHT.name, []) if weight is not None]
        if weights:
            spread = f"{min(weights):g}" if min(weights) == max(weights) else f"{min(weights):g} to {max(weights):g}"
            report.notes.append(f"{len(weights)} rows have a {WEIGHT.name} of their own in training: {spread}")
        if not any(problem.fatal and problem.line is None for problem in report.problems):
            used = {"id", "image"} | {name for spec in self.fields for name in (spec.name, spec.alias)}
            unused = sorted(_columns(source) - used)
            if unused:
                report.notes.append(f"fields that are not used: {', '.join(unused)}")

    def _refused_as_a_whole(self) -> bool:
        """One message instead of one per row where nothing can be used: no rows, or data of another task."""
        source = self.source
        if not source.rows:
            self.report.problems.append(Problem(source.file, None, None, "has no rows", fatal=True))
            return True
        present = _columns(source)
        wanted = {"image": "image"} | {spec.name: spec.title for spec in self.fields if spec.required}
        aliases = {spec.name: {spec.name, spec.alias} for spec in self.fields} | {"image": {"image"}}
        missing = [title for name, title in wanted.items() if not aliases[name] & present]
        if missing and present:
            message = (
                f"no row has the field {' or '.join(map(repr, missing))}; fields found: {', '.join(sorted(present))}. "
                f"This task needs {', '.join(wanted.values())}: is this data for another task?"
            )
            self.report.problems.append(Problem(source.file, None, None, message, fatal=True))
        return bool(missing and present)

    def _look_at(self, index: int, row: RawRow) -> None:
        if row.values is None:
            self.report.problems.append(Problem(row.file, row.line, None, row.error or "cannot be read", row.fatal))
            return
        outcome = parse_row(row.values, self.fields, official=self.source.official)
        self.report.problems += [Problem(row.file, row.line, name, message) for name, message in outcome.problems]
        usable = not outcome.problems
        dropped = outcome.dropped or (outcome.unlearnable if self.for_training and usable else None)
        if dropped:
            self._leave_out(dropped)
            return
        if usable:
            self.notes.update(set(outcome.notes))
            own = self._has_own_id(index, row, outcome)
            if own is None:
                return
            usable = own
        key = self._picture(row)
        if usable and key is not None:
            self.examples.add(str(outcome.id), key, outcome.values)

    def _has_own_id(self, index: int, row: RawRow, outcome: ParsedRow) -> bool | None:
        """Give an id to a row without one; None for an exact repeat, False for an id with two contents."""
        if outcome.id is None:
            outcome.id = f"{Path(self.source.file).stem}-{index + 1}"
        earlier = self.first.setdefault(outcome.id, index)
        if earlier == index:
            return True
        other = self.source.rows[earlier]
        if _content(other) == _content(row):
            self._leave_out("an exact repeat of an earlier row")
            return None
        message = f"{outcome.id!r} was used by {self.source.unit} {other.line} for another content"
        self.report.problems.append(Problem(row.file, row.line, "id", message))
        return False

    def _leave_out(self, reason: str) -> None:
        self.notes[f"{reason}, left out"] += 1
        self.report.dropped += 1

    def _picture(self, row: RawRow) -> str | None:
        """The key of a row's picture, None if it cannot be used. Each picture is looked at once."""
        images = self.source.images
        try:
            key = images.locate((row.values or {}).get("image"))
            place = (self.place, key)
            if place not in self.verdicts:
                self.verdicts[place] = None if self.source.trusted else _verdict(images, key, decode=self.decode)
            fault = self.verdicts[place]
        except ImageError as error:
            key, fault = "", str(error)
        except FieldError as error:
            self.report.problems.append(Problem(row.file, row.line, "image", str(error)))
            return None
        if fault is None:
            self.some_picture = True
            return key
        first, later = self.culprits.get(fault, (row, -1))
        self.culprits[fault] = (first, later + 1)
        return None

    def _report_pictures(self) -> None:
        """One problem per picture, however many rows name it."""
        for fault, (row, later) in self.culprits.items():
            also = f" (also named by {later} later rows)" if later else ""
            self.report.problems.append(Problem(row.file, row.line, "image", f"{fault}{also}"))
        if self.culprits and not self.some_picture:
            self.report.notes.append(
                "no image could be used: are the paths relative to the folder of the annotation file?"
            )


def _columns(source: Source) -> set[str]:
    rows = source.rows
    return (
        rows.names if isinstance(rows, ColumnRows) else {str(name) for row in rows if row.values for name in row.values}
    )


def _content(row: RawRow) -> dict[str, Any]:
    return {name: value for name, value in (row.values or {}).items() if name != "id"}


def _verdict(images: ImageStore, key: str, *, decode: bool) -> str | None:
    try:
        images.verify(key, decode=decode)
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


def _across(named: dict[str, tuple[ImageStore, set[str]]]) -> list[str]:
    """Notes that need all splits: shared images, and images that no split names."""
    notes = []
    for first, second in combinations(named, 2):
        (images, keys), (others, other_keys) = named[first], named[second]
        if images.place == others.place and keys & other_keys:
            notes.append(f"{len(keys & other_keys)} images occur in both {first} and {second}")
    places = {images.place: images for images, _ in named.values()}
    unreferenced: list[str] = []
    for place, images in places.items():
        used = [keys for others, keys in named.values() if others.place == place]
        unreferenced += images.unreferenced(set().union(*used))
    if unreferenced:
        some = ", ".join(unreferenced[:5]) + (", ..." if len(unreferenced) > 5 else "")
        notes.append(f"{len(unreferenced)} images without annotation in what was checked: {some}")
    return notes
