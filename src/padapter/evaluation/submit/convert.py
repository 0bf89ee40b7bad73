"""``padapter submit``: predictions in, a server's file out, or everything that is wrong with them at once."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padapter.data.schema import FieldError, asked_fields, parse_id
from padapter.data.sources import open_source
from padapter.errors import UserError
from padapter.evaluation.files import check_file, output_problems
from padapter.evaluation.journal import is_header
from padapter.evaluation.results import write_text
from padapter.evaluation.submit import FORMATS, Answer, Format
from padapter.evaluation.submit.base import as_json
from padapter.options import SubmitOptions
from padapter.tasks import get_task

SHOWN = 5


@dataclass(frozen=True)
class Submission:
    """A file that was written.

    Attributes:
        path: of the file.
        form: its format.
        entries: how many rows it answers.
        notes: what the server may not like about it.
    """

    path: Path
    form: Format
    entries: int
    notes: tuple[str, ...]


def submit(options: SubmitOptions) -> Submission:
    """Convert predictions into the file of an evaluation server.

    Nothing is written unless the predictions answer every row of the data once and nothing else. Pictures are not
    looked at.

    Args:
        options: predictions, format, data and output.

    Returns:
        What was written.

    Raises:
        UserError: for options, files or data that cannot be used, and for predictions that do not fit the data; the
            message counts every kind of mistake and shows the first few.
    """
    output = Path(options.output)
    with output_problems(output):
        if output.exists() and not options.overwrite:
            raise UserError(f"--output: {output} exists; choose another file or give --overwrite")
        check_file(output)
        form = _format(options)
        wanted, answered = read_rows(options.data, form.task, options.split)
        answers = read_answers(Path(options.predictions))
        problems = [*_misfits(answers, wanted), *_wrong_ids(answers, form)]
        if problems:
            listed = "\n".join(f"  {problem}" for problem in problems)
            raise UserError(
                f"{options.predictions}: does not fit {options.data}, split {options.split}, {len(wanted)} rows:\n"
                f"{listed}\nNothing was written"
            )
        given = {answer.id: answer for answer in answers}
        ordered = [given[key] for key in wanted]
        entries = [form.entry(answer) for answer in ordered]
        write_text(output, as_json(entries))
    notes = [*_notes(form, ordered, entries, output)]
    if answered:
        notes.insert(
            0,
            f"the rows of split {options.split!r} have answers, and servers score splits that keep theirs back: no "
            "server may score this file; `padapter eval` does",
        )
    return Submission(output, form, len(entries), tuple(notes))


def read_answers(path: Path) -> list[Answer]:
    """Read ``predictions.jsonl`` of ``padapter eval`` or ``train``, or what ``padapter predict`` wrote.

    Raises:
        UserError: for a file that is not there, is unfinished, or has a line that is no prediction.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"PREDICTIONS: cannot read {path} ({problem})") from problem
    return [_answer(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def read_rows(spec: str, task: str, split: str) -> tuple[list[str], bool]:
    """The ids of a data set's rows, in order, each once, and whether all rows have answers.

    Args:
        spec: the data.
        task: name of the task they are for.
        split: which split.

    Raises:
        UserError: the data cannot be read, or a row has no id of its own.
    """
    fields = get_task(task).fields
    kept_back = [spec for spec in fields if spec.required and spec not in asked_fields(fields)]
    ids: dict[str, None] = {}
    answered = True
    for row in open_source(spec, task, split=split).rows:
        try:
            key = parse_id(row.values.get("id")) if row.values is not None else None
            reason = row.error if row.values is None else "has no id, by which the server could know it"
        except FieldError as problem:
            key, reason = None, f"id: {problem}"
        if key is None:
            raise UserError(f"{row.file}, line {row.line}: {reason}; `padapter data check {spec}` lists every problem")
        ids[key] = None
        answered = answered and all(item.find(row.values or {}) is not None for item in kept_back)
    return list(ids), answered


def _format(options: SubmitOptions) -> Format:
    name = options.format or options.data.split(":", 1)[0]
    if name in FORMATS:
        return FORMATS[name]
    known = "; ".join(f"{form.name}: {form.summary}" for form in FORMATS.values())
    if options.format is None:
        raise UserError(f"--format: {options.data} is no benchmark that tells its format; give one of: {known}")
    raise UserError(f"--format: {name!r} is none of: {known}")


def _answer(line: str, place: str) -> Answer:
    try:
        value = json.loads(line)
    except ValueError as problem:
        raise UserError(f"{place}: is no JSON ({problem}); was its writing interrupted?") from problem
    if is_header(value):
        raise UserError(f"{place}: these answers are unfinished; give the command that was interrupted again")
    if not isinstance(value, dict) or not isinstance(value.get("id"), str) or not isinstance(value.get("text"), str):
        raise UserError(f"{place}: is no prediction, an object with the texts 'id' and 'text'")
    candidates = value.get("candidates")
    if candidates is not None and not _are_scores(candidates):
        raise UserError(f"{place}: candidates: is no object of finite numbers")
    return Answer(value["id"], value["text"], candidates)


def _are_scores(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(score, (int, float)) and abs(score) < float("inf") for score in value.values()
    )


def _misfits(answers: Sequence[Answer], wanted: Sequence[str]) -> Iterable[str]:
    counts = Counter(answer.id for answer in answers)
    known = set(wanted)
    groups = {
        "without an answer": [key for key in wanted if key not in counts],
        "answered, but not in the data": [key for key in counts if key not in known],
        "answered more than once": [key for key, count in counts.items() if count > 1],
    }
    return [f"{what}: {len(keys)} ({_some(keys)})" for what, keys in groups.items() if keys]


def _wrong_ids(answers: Sequence[Answer], form: Format) -> Iterable[str]:
    wrong: dict[str, list[str]] = {}
    for key in dict.fromkeys(answer.id for answer in answers):
        try:
            form.key(key)
        except ValueError as problem:
            wrong.setdefault(str(problem), []).append(key)
    return [f"not of {form.name}, where {what}: {len(keys)} ({_some(keys)})" for what, keys in wrong.items()]


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(map(repr, keys[:SHOWN])) + more


def _notes(form: Format, answers: list[Answer], entries: Sequence[dict[str, Any]], output: Path) -> Iterable[str]:
    empty = [answer.id for answer, entry in zip(answers, entries, strict=True) if entry[form.value_field] == ""]
    if empty:
        yield f"{len(empty)} answers are empty, and score as such: {_some(empty)}"
    remark = form.note(answers)
    if remark:
        yield remark
    if form.file_name is not None and not re.fullmatch(form.file_name, output.name):
        yield f"the server wants the file to be called {form.file_name_form}"
