"""From a data spec to a checked ``datasets.Dataset`` with the task's columns."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from padapter.data.check import DataTask, examine
from padapter.data.examples import Examples
from padapter.data.report import Report
from padapter.data.schema import WEIGHT, Field, asked_fields
from padapter.data.source import Source
from padapter.data.sources import open_source
from padapter.data.tables import in_memory
from padapter.errors import UserError

if TYPE_CHECKING:
    import datasets

_SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class LoadedData:
    """Checked data of one split.

    Attributes:
        dataset: Columns ``id`` (unique text), ``image`` (``datasets.Image(decode=False)``: bytes and path) and the
            task's fields.
        name: A short name without machine paths.
        split: The split it stands for; of a benchmark, its own name for it.
        fingerprint: Equal for equal rows in equal order with equal pictures (see :func:`load_data`).
        report: What was found on the way.
        rule: The scoring rule that the data's publisher asks for; None for the task's own.
        unweighted: The fingerprint that the same rows would have if none had a weight.
    """

    dataset: datasets.Dataset
    name: str
    split: str
    fingerprint: str
    report: Report
    rule: str | None = None
    unweighted: str = ""


def load_data(
    spec: str,
    task: DataTask,
    *,
    split: str = "train",
    skip_bad_rows: bool = False,
    limit: int | None = None,
    seed: int = 0,
    for_training: bool = False,
) -> LoadedData:
    """Load one split of a data set for a task.

    Pictures are looked at but not decoded (a cut-off file is found all the same, damage in its middle is not: that
    is what ``padapter data check`` is for). With ``skip_bad_rows`` every picture is decoded once: which rows are bad
    has to be known before the first epoch.

    The fingerprint is a hash of the rows that are used (ids, clean texts, image names) and of each picture: its
    bytes where it sits in a table; of a file its size and its first and last 64 KiB. It does not depend on where the
    data lie.

    Args:
        spec: A file beside its images, a folder, a ``datasets`` directory, a hub id, a benchmark or a built-in world.
        task: Says which fields a row has.
        split: ``train``, ``validation`` or ``test``, or a name that the benchmark knows; a single file is the split it
            is given for.
        skip_bad_rows: Leave out rows with problems, and count them, instead of refusing the data.
        limit: Use a random sample of so many rows, in their order.
        seed: For the sample, and for built-in worlds.
        for_training: Leave out rows, and count them, that a benchmark scores but nobody can learn from.

    Returns:
        The data with their report.

    Raises:
        UserError: Nothing there, no such split, answers that are not public, or bad rows; the message lists the first
            problems and counts all.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is a whole number above 0; got {limit}.")
    source = open_source(spec, task.name, split=split, seed=seed)
    if source.unanswered and any(field.required for field in set(task.fields) - set(asked_fields(task.fields))):
        raise UserError(f"{spec}: {source.unanswered}.")
    report, examples = examine(source, task.fields, decode=skip_bad_rows, for_training=for_training)
    fatal = any(problem.fatal for problem in report.problems)
    if report.problems and (fatal or not examples or not skip_bad_rows):
        raise UserError(refusal(spec, task, report, skippable=bool(examples) and not fatal))
    if not examples:
        raise UserError(f"{spec}: none of the {report.rows} rows can be used.\n{report.format()}")
    if report.problems:
        report.notes.append(f"{report.bad} bad rows skipped")
    if limit is not None and limit < len(examples):
        chosen = sorted(random.Random(seed).sample(range(len(examples)), limit))
        examples = examples.select(chosen)
    found, unweighted = fingerprints(source, task.name, examples)
    source.images.remember()
    table = _build(source, task.fields, examples, found)
    return LoadedData(table, source.name, source.split, found, report, source.rule, unweighted)


def refusal(spec: str, task: DataTask, report: Report, *, skippable: bool) -> str:
    """What to say where data with problems are refused: the first problems, their number, and what to do."""
    shown = report.problems[:_SHOWN_PROBLEMS]
    rows = f"{report.bad} of {report.rows} rows cannot be used" if report.rows else "the data cannot be used"
    found = len(report.problems)
    lines = [f"{spec}: {rows}; {found} {'problem' if found == 1 else 'problems'}:"]
    lines += [f"  {problem}" for problem in shown]
    if found > len(shown):
        lines.append(f"  ... and {found - len(shown)} more")
    lines += [f"  note: {note}" for note in report.notes if "no image could be used" in note]
    advice = f"`padapter data check {spec} --task {task.name}` lists every problem"
    lines.append(f"{advice}; --skip-bad-rows (skip_bad_rows=True) goes on without them." if skippable else f"{advice}.")
    return "\n".join(lines)


def _build(source: Source, fields: Sequence[Field], examples: Examples, name: str) -> datasets.Dataset:
    import datasets

    text = datasets.Value("string")
    kinds = {"texts": datasets.List(text), "flag": datasets.Value("bool"), "number": datasets.Value("float64")}
    columns: dict[str, list[object]] = {"id": list(examples.ids)}
    features = {"id": text}
    for spec in fields:
        values = examples.values[spec.name]
        if not spec.required and all(value is None for value in values):
            continue
        columns[spec.name] = values
        features[spec.name] = kinds.get(spec.kind, text)
    return source.images.attach(in_memory(columns, datasets.Features(features), name), examples.images)


def fingerprint(source: Source, task: str, examples: Examples) -> str:
    """What stands for these rows and their pictures; see :func:`load_data`."""
    return fingerprints(source, task, examples)[0]


def fingerprints(source: Source, task: str, examples: Examples) -> tuple[str, str]:
    """The fingerprint, and the one that the same rows would have without weights."""
    digest, unweighted = hashlib.sha256(task.encode()), hashlib.sha256(task.encode())
    stamps: dict[str, str] = {}
    for key, image, values in examples.records():
        if image not in stamps:
            stamps[image] = source.images.stamp(image)
        # What a row lacks is left out, so that a new optional field changes no fingerprint.
        there = {name: value for name, value in values.items() if value is not None}
        written = _written(key, image, stamps[image], there)
        digest.update(written)
        unweighted.update(
            _written(key, image, stamps[image], {name: there[name] for name in there.keys() - {WEIGHT.name}})
            if WEIGHT.name in there
            else written
        )
    return digest.hexdigest()[:16], unweighted.hexdigest()[:16]


def _written(*values: object) -> bytes:
    return json.dumps(values, sort_keys=True, ensure_ascii=True).encode()
