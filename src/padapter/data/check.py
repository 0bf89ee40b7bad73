"""Find everything that is wrong with a data set before a long run starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from padapter.data.advice import other_columns, similar
from padapter.data.columns import ColumnRows
from padapter.data.examples import Example, Examples
from padapter.data.images import ImageError, MissingImageError
from padapter.data.readers import RawRow
from padapter.data.report import Problem, Report
from padapter.data.schema import WEIGHT, Field, FieldError, ParsedRow, asked_fields, parse_row
from padapter.data.schemes import scheme_of
from padapter.data.source import Source
from padapter.data.sources import available_splits, open_source
from padapter.data.stores import ImageStore
from padapter.errors import UserError

#: More missing pictures of a benchmark are one problem; so many of them are named.
_LISTED = 5


class DataTask(Protocol):
    """The part of a task that data need: its name and its fields."""

    @property
    def name(self) -> str:
        """The name of the task."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """The columns besides id and image."""


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
        self.pictures: set[str] = set()
        self.absent: set[str] = set()

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
                meant = similar(unused, [name for name in used - _columns(source) if name])
                shown = (f"{name} (is {meant[name]} meant?)" if name in meant else name for name in unused)
                report.notes.append(f"fields that are not used: {', '.join(shown)}")

    def _refused_as_a_whole(self) -> bool:
        """One message instead of one per row where nothing can be used: no rows, or data of another task."""
        source = self.source
        if not source.rows:
            self.report.problems.append(Problem(source.file, None, None, "has no rows", fatal=True))
            return True
        present = _columns(source)
        wanted = [{"image"}, *({spec.name, spec.alias or spec.name} for spec in self.fields if spec.required)]
        missing = [names for names in wanted if not names & present]
        if missing and present:
            said = " and no field ".join(" or ".join(map(repr, sorted(names, reverse=True))) for names in missing)
            message = (
                f"no row has the field {said}; fields found: {', '.join(sorted(present))}. {self._advice(missing)}"
            )
            self.report.problems.append(Problem(source.file, None, None, message, fatal=True))
        return bool(missing and present)

    def _advice(self, missing: Sequence[set[str]]) -> str:
        """What to do about fields that no row has: names that are nearly right, or another command."""
        used = {name for spec in self.fields for name in (spec.name, spec.alias)} | {"image", "id"}
        meant = similar(_columns(self.source) - used, [name for names in missing for name in names])
        renamed = "".join(f"Is {name!r} meant to be {wanted!r}? Rename it. " for name, wanted in meant.items())
        if all(names & set(meant.values()) for names in missing):
            return renamed.rstrip()
        if renamed:
            return f"{renamed}{other_columns(self.source.file)}".rstrip()
        needs = ", ".join(["image", *(spec.title for spec in self.fields if spec.required)])
        return f"This task needs {needs}: is this data for another task? {other_columns(self.source.file)}".rstrip()

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
            self.pictures.add(key)
            fault = self.verdicts[place]
        except ImageError as error:
            key, fault = "", str(error)
            if isinstance(error, MissingImageError):
                self.absent.add(fault)
        except FieldError as error:
            self.report.problems.append(Problem(row.file, row.line, "image", str(error)))
            return None
        if fault is None:
            return key
        first, later = self.culprits.get(fault, (row, -1))
        self.culprits[fault] = (first, later + 1)
        return None

    def _report_pictures(self) -> None:
        """One problem per picture, however many rows name it; one for all of a benchmark that are not there."""
        source = self.source
        summed_up = source.found_at is not None and len(self.absent) > _LISTED
        if summed_up:
            named = [self.culprits[fault] for fault in self.culprits if fault in self.absent]
            some = ", ".join(str((row.values or {}).get("image")) for row, _ in named[:_LISTED])
            message = (
                f"{len(named):,} of {len(named) + len(self.pictures):,} pictures are missing, which "
                f"{sum(later + 1 for _, later in named):,} rows name: {some}, ... Officially found at {source.found_at}"
            )
            self.report.problems.append(Problem(source.file, None, "image", message))
        for fault, (row, later) in self.culprits.items():
            if summed_up and fault in self.absent:
                continue
            also = f" (also named by {later} later rows)" if later else ""
            self.report.problems.append(Problem(row.file, row.line, "image", f"{fault}{also}"))
        if self.culprits and not any(self.verdicts[self.place, key] is None for key in self.pictures):
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
