"""Rows with named columns, whatever the names are: the columns are named by options or guessed from usual names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from padapter.errors import UserError
from padapter.importers.base import SplitOptions
from padapter.options.fields import option
from padapter.values import names_close_to

if TYPE_CHECKING:
    from padapter.importers.base import Reading
    from padapter.importers.pictures import Pictures

#: Columns that say what each task needs.
NEEDED = {"vqa": ("question", "answer"), "entailment": ("hypothesis", "label"), "caption": ("caption",)}

#: Usual names by role, likeliest first; letters and digits only, so that "Image Path" is imagepath.
USUAL: Mapping[str, tuple[str, ...]] = {
    "image": (
        "image", "imagepath", "imagefile", "imagefilename", "imagename", "img", "imgpath", "imgname", "filename",
        "filepath", "file", "path", "picture", "photo", "pic", "imageid", "imgid",
    ),
    "question": ("question", "questions", "query", "q"),
    "answer": ("answer", "answers", "goldanswer", "groundtruth", "response", "target", "a", "label"),
    "caption": ("caption", "captions", "description", "text", "sentence", "sentences", "alttext", "comment", "title"),
    "hypothesis": ("hypothesis", "statement", "claim", "sentence2", "sentence"),
    "label": ("label", "goldlabel", "verdict", "truth", "class"),
    "id": ("id", "questionid", "qid", "rowid", "sampleid"),
    "question_type": ("questiontype",),
    "answer_type": ("answertype",),
    "split": ("split", "subset", "partition", "fold", "set"),
}  # fmt: skip
_LOOKED_AT = 20


@dataclass(kw_only=True)
class ColumnOptions(SplitOptions):
    """Options of importers that read columns of any name."""

    image: str | None = option(None, metavar="COL", help="Column of the picture. (default: guessed, as all others)")
    question: str | None = option(None, metavar="COL", help="Column of the question; with --answer.")
    answer: str | None = option(None, metavar="COL", help="Column of the answer or the answers.")
    caption: str | None = option(None, metavar="COL", help="Column of the caption or the captions.")
    hypothesis: str | None = option(None, metavar="COL", help="Column of the statement to judge; with --label.")
    label: str | None = option(None, metavar="COL", help="Column of the label.")
    id: str | None = option(None, metavar="COL", help="Column of an id.")
    split_column: str | None = option(None, metavar="COL", help="Column that says train, validation or test.")
    weight: str | None = option(
        None, metavar="COL", help="Column that says how much a row counts in training. (default: none)"
    )
    group: str | None = option(
        None, metavar="COL", help="Column whose equal values stay in one split, e.g. the patient. (default: none)"
    )
    several: str | None = option(None, metavar="MARK", help="Mark between several answers or captions, e.g. '|'.")
    label_names: str | None = option(None, metavar="0=no,1=yes", help="Names for labels that are numbers.")


@dataclass
class Columns:
    """Which column plays which role.

    Attributes:
        task: The task that they make.
        names: Column by role.
        guessed: The roles that no option named.
    """

    task: str
    names: dict[str, str]
    guessed: list[str] = field(default_factory=list)


def read_table(
    rows: Iterable[tuple[str, dict[str, Any]]], options: ColumnOptions, pictures: Pictures, file: str
) -> Reading:
    """Turn rows into what can be written.

    Args:
        rows: Where each row is, and the row.
        options: Names of columns.
        pictures: Where the pictures are.
        file: What was read, for messages.

    Raises:
        UserError: No rows, columns that are missing or not certain, or a split that is none.
    """
    from padapter.importers.base import FoundRow, Reading

    listed = list(rows)
    if not listed:
        raise UserError(f"{file}: has no rows.")
    columns = choose_columns([row for _, row in listed], options, file)
    reading = Reading(columns.task, pictures, [], f"{len(listed)} rows of {file}", split=options.split)
    label_names = _label_names(options)
    for where, row in listed:
        values = {role: row.get(name) for role, name in columns.names.items()}
        image, split, group = (values.pop(role, None) for role in ("image", "split", "group"))
        reading.rows.append(
            FoundRow(
                where,
                image,
                _task_values(values, options.several, label_names),
                _split(where, columns.names["split"], split) if "split" in columns.names else None,
                None if group is None else str(group),
            )
        )
    reading.notes += _notes(columns, [row for _, row in listed])
    return reading


def choose_columns(rows: Sequence[Mapping[str, Any]], options: ColumnOptions, file: str) -> Columns:
    """Find the columns.

    Raises:
        UserError: An option names a column that is not there, or the names leave more than one choice or none.
    """
    header = list(dict.fromkeys(name for row in rows for name in row))
    named = _named(header, options, file)
    taken = set(named.values())
    free = [name for name in header if name not in taken]
    guesses = {} if "image" in named else _guess(("image",), free) or _column_of_files(rows, free)
    if "image" not in named | guesses:
        raise UserError(f"{file}: which column is the picture? Name it with --image. Columns: {', '.join(header)}.")
    free = [name for name in free if name not in guesses.values()]
    task, more = _choose_task(named, free, header, file)
    guesses |= more
    optional = ["id"] + (["question_type", "answer_type"] if task == "vqa" else [])
    optional += [] if not options.may_guess_split or "split" in named else ["split"]
    free = [name for name in free if name not in guesses.values()]
    guesses |= {role: name for role, name in _guess(optional, free).items() if role not in named}
    if "split" in guesses and not _is_split_column(rows, guesses["split"]):
        del guesses["split"]
    return Columns(task, named | guesses, list(guesses))


def _named(header: Sequence[str], options: ColumnOptions, file: str) -> dict[str, str]:
    roles = {name: name for name in (*USUAL, "group", "weight") if name != "split"} | {"split_column": "split"}
    named = {}
    for attribute, role in roles.items():
        name = getattr(options, attribute, None)
        if name is None:
            continue
        if name not in header:
            hint = names_close_to(name, header)
            raise UserError(f"--{attribute.replace('_', '-')}: {file} has no column {name!r}{hint}")
        named[role] = name
    return named


def _choose_task(
    named: Mapping[str, str], free: Sequence[str], header: Sequence[str], file: str
) -> tuple[str, dict[str, str]]:
    """The one task whose columns are all there; roles that an option named decide."""
    meant = [task for task, roles in NEEDED.items() if named.keys() & set(roles)]
    if len(meant) > 1:
        flags = ", ".join(f"--{role}" for task in meant for role in NEEDED[task] if role in named)
        raise UserError(f"{flags}: belong to several tasks ({', '.join(meant)}); name the columns of one.")
    found = {}
    for task in meant or NEEDED:
        guesses = _guess([role for role in NEEDED[task] if role not in named], free)
        if all(role in named or role in guesses for role in NEEDED[task]):
            found[task] = guesses
    # "sentence" with "label" is a statement, alone a caption: the task that explains more columns wins.
    used = {task: set(guesses.values()) for task, guesses in found.items()}
    found = {task: it for task, it in found.items() if not any(used[task] < other for other in used.values())}
    if len(found) == 1:
        return next(iter(found.items()))
    if meant:
        missing = [role for role in NEEDED[meant[0]] if role not in named]
        raise UserError(f"{file}: --{missing[0]} is needed too. Columns: {', '.join(header)}.")
    choices = "--question and --answer, --hypothesis and --label, or --caption"
    what = f"its columns fit the tasks {' and '.join(found)}" if found else "no column has a usual name"
    raise UserError(f"{file}: {what}; name the columns with {choices}. Columns: {', '.join(header)}.")


def _guess(roles: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    """A column by role, each column for one role; roles without a usual name are not there."""
    plain = {re.sub(r"[^a-z0-9]+", "", name.lower()): name for name in reversed(columns)}
    found: dict[str, str] = {}
    for role in roles:
        name = next(
            (plain[usual] for usual in USUAL[role] if usual in plain and plain[usual] not in found.values()), None
        )
        if name is not None:
            found[role] = name
    return found


def _column_of_files(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, str]:
    """The one column most of whose first cells end like the name of a picture."""
    from padapter.importers.pictures import is_picture

    some = rows[:_LOOKED_AT]
    likely = [name for name in columns if 2 * sum(is_picture(str(row.get(name, ""))) for row in some) > len(some)]
    return {"image": likely[0]} if len(likely) == 1 else {}


def _is_split_column(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    from padapter.importers.files import split_called

    return all(split_called(row.get(name)) for row in rows)


def _split(where: str, column: str, value: Any) -> str:
    from padapter.importers.files import split_called

    split = split_called(value)
    if split is None:
        raise UserError(f"{where}: {column}: {value!r} is none of train, validation (val, dev), test.")
    return split


def _task_values(values: dict[str, Any], several: str | None, label_names: Mapping[str, str]) -> dict[str, Any]:
    """Values under the names that a task reads them by."""
    found = {}
    for role, value in values.items():
        name = {"answer": "answers", "caption": "captions"}.get(role, role)
        if name in ("answers", "captions"):
            value = _listed(value, several)
        elif role == "label":
            value = label_names.get(str(value).strip(), value)
        found[name] = value
    return found


def _listed(value: Any, several: str | None) -> Any:
    """Answers or captions as a list of texts, from the forms in which files have them."""
    if isinstance(value, str) and several:
        return value.split(several)
    if isinstance(value, Mapping):
        return _listed(_inner(value), several)
    if isinstance(value, list):
        return [_inner(entry) if isinstance(entry, Mapping) else entry for entry in value]
    return value


def _inner(entry: Mapping[str, Any]) -> Any:
    """The text of an annotator's record such as ``{"answer": "yes", "answer_confidence": "maybe"}``."""
    return next((entry[name] for name in ("answer", "caption", "raw", "text", "value") if name in entry), None)


def _label_names(options: ColumnOptions) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in (options.label_names or "").split(",") if pair.strip()]
    if not all(label.strip() and name.strip() for label, _, name in pairs):
        raise UserError(f"--label-names: expected LABEL=NAME,LABEL=NAME, got {options.label_names!r}")
    return {label.strip(): name.strip() for label, _, name in pairs}


def _notes(columns: Columns, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    if columns.guessed:
        shown = ", ".join(f"{role} is {columns.names[role]!r}" for role in columns.guessed)
        notes.append(f"columns guessed from their names: {shown}; options such as --{columns.guessed[0]} name others")
    unused = sorted({name for row in rows for name in row} - set(columns.names.values()))
    if unused:
        notes.append(f"columns not used: {', '.join(unused)}")
    return notes
