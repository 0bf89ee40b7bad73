"""Questions and answers as JSON: the two files of VQA, or one list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from padapter.errors import UserError
from padapter.importers.base import FoundRow, Reading, expect
from padapter.importers.tables import ColumnOptions, read_table
from padapter.options.fields import option

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(kw_only=True)
class VqaOptions(ColumnOptions):
    """Options of ``padapter data from-vqa``."""

    annotations: str | None = option(
        None, metavar="FILE", help="The answers, where SRC has only questions. (default: found beside SRC)"
    )


def read(options: VqaOptions) -> Reading:
    """Questions and answers as JSON: a questions file with its annotations file, or one list of records.

    SRC is the questions file (or the folder of both), or a JSON or JSON lines file of records that name picture,
    question and answer in one of the usual ways. Pictures known by a number are found by the number that ends their
    file name.
    """
    from padapter.importers.files import existing, json_of, only_file, pictures_of, rows_of

    source = existing(options.source)
    file = only_file(options.source, "*question*.json") if source.is_dir() else source
    content = None if file.suffix.lower() in (".jsonl", ".ndjson") or _is_list(file) else json_of(file)
    if isinstance(content, dict) and "questions" in content and not _answered(content["questions"]):
        return _read_pair(options, file, content)
    rows = rows_of(file) if content is None else _listed(file, content)
    expanded = [pair for where, row in rows for pair in _turns(where, row)]
    return read_table(expanded, options, pictures_of(options, file.parent), str(file))


def _read_pair(options: VqaOptions, file: Path, content: dict[str, Any]) -> Reading:
    from pathlib import Path

    from padapter.importers.files import json_of, pictures_of, records, split_in_name

    other = Path(options.annotations).expanduser() if options.annotations else _annotations_beside(file)
    answers = json_of(other)
    listed = isinstance(answers, dict) and "annotations" in answers
    expect(listed, str(other), "not a VQA annotations file: expected one object with 'annotations'.")
    reading = Reading("vqa", pictures_of(options, file.parent), [], "", split=options.split)
    if options.annotations is None:
        reading.notes.append(f"the answers are those of {other.name}; --annotations names another file")
    if options.may_guess_split and (guess := split_in_name(file.stem)):
        reading.split = guess
        reading.notes.append(f"everything is {guess}, told from the file name; --split or --test say otherwise")
    by_question: dict[str, dict[str, Any]] = {}
    for where, record in records(other, answers, "annotations"):
        expect(record.get("question_id") is not None, where, "question_id: is missing.")
        by_question[str(record["question_id"])] = record
    for where, question in records(file, content, "questions"):
        key = question.get("question_id")
        expect(key is not None, where, "question_id: is missing.")
        found = by_question.pop(str(key), None)
        if found is None:
            reading.left_out.add("the question has no answers", f"{where}: question_id: {key}")
        else:
            reading.rows.append(_row(where, question, found))
    for key in by_question:
        reading.left_out.add("answers to a question that is not listed", f"{other}: question_id: {key}")
    reading.source = (
        f"{len(content['questions'])} questions of {file}, {len(answers['annotations'])} answers of {other}"
    )
    return reading


def _row(where: str, question: dict[str, Any], answered: dict[str, Any]) -> FoundRow:
    answers = answered.get("answers", answered.get("multiple_choice_answer"))
    if isinstance(answers, list):
        answers = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    image = question.get("image", question.get("image_id", answered.get("image_id")))
    kinds = {name: answered.get(name) for name in ("question_type", "answer_type")}
    values = {"id": question["question_id"], "question": question.get("question"), "answers": answers, **kinds}
    return FoundRow(where, image, values)


def _annotations_beside(file: Path) -> Path:
    """The annotations file of a questions file: of VQA's own name, or the only one in the folder."""
    named = file.with_name(file.name.replace("OpenEnded_", "").replace("questions", "annotations"))
    if named != file and named.is_file():
        return named
    found = sorted(file.parent.glob("*annotation*.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{file}: which file has the answers? Name it with --annotations; found: {names}.")
    return found[0]


def _is_list(file: Path) -> bool:
    with file.open("rb") as handle:
        return handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _answered(questions: Any) -> bool:
    return isinstance(questions, list) and any(
        isinstance(row, dict) and {"answer", "answers"} & row.keys() for row in questions
    )


def _listed(file: Path, content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The one list of records in an object, whatever it is called."""
    from padapter.importers.files import records

    expect(isinstance(content, dict), str(file), f"is {type(content).__name__}; expected an object or a list.")
    lists = [
        name for name, value in content.items() if isinstance(value, list) and value and isinstance(value[0], dict)
    ]
    expect(len(lists) == 1, str(file), f"expected one list of records, found {', '.join(lists) or 'none'}.")
    return records(file, content, lists[0])


def _turns(where: str, row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The row itself; of a conversation (``conversations: [{from: human, value}, {from: gpt, value}]``) its turns."""
    turns = row.get("conversations")
    if not isinstance(turns, list):
        yield where, row
        return
    rest = {name: value for name, value in row.items() if name not in ("conversations", "id")}
    for asked, said in zip(turns[::2], turns[1::2], strict=False):
        expect(isinstance(asked, dict) and isinstance(said, dict), where, "conversations: expected objects.")
        question = str(asked.get("value", "")).replace("<image>", " ")
        yield where, {**rest, "question": question, "answer": said.get("value")}
