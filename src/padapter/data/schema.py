"""What a row must look like: fields, and the turning of one row on disk into one row in memory."""

from __future__ import annotations

import contextlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from padapter.errors import UserError

Kind = Literal["text", "texts", "label", "flag", "number"]

#: The gold label of SNLI for "no majority": such rows are dropped and counted, never a class.
NO_LABEL = "-"

#: Beyond these weights single precision would lose a row, or all others.
_GREATEST = 1_000_000

_CONTROL = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029]")


class FieldError(UserError):
    """One value of one row cannot be used."""


class WordlessError(FieldError):
    """A text without a word, or texts without one: nothing to teach, but a benchmark scores what is said to it.

    Attributes:
        value: The clean value.
    """

    def __init__(self, message: str, value: str | list[str]) -> None:
        super().__init__(message)
        self.value = value


#: Letters and signs by their categories that say nothing all the same: fillers, the blank of Braille, and the sign for
#: what could not be decoded, which BERT's tokenizer drops.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800\ufffd")


@dataclass(frozen=True)
class Field:
    """One column of a task's data besides ``id`` and ``image``.

    Attributes:
        name: The column in memory, and its first name on disk.
        kind: ``text`` (one text), ``texts`` (a list of texts; on disk a single text will do), ``label``, ``flag``
            (a boolean; on disk also 0 and 1, and each as text) or ``number`` (above 0; on disk also as text).
        alias: A second name accepted on disk.
        required: Without it a row cannot be used; otherwise it becomes None.
        words: At least one character must be more than punctuation or white space; otherwise one must be visible.
        keep_empty: In a list, empty entries stay (an annotator who left the answer empty counts); otherwise they
            are left out. Either way one entry must not be empty.
    """

    name: str
    kind: Kind
    alias: str | None = None
    required: bool = True
    words: bool = True
    keep_empty: bool = False

    @property
    def title(self) -> str:
        """``answers or answer``: the names accepted on disk."""
        return f"{self.name} or {self.alias}" if self.alias else self.name

    def name_in(self, row: Mapping[str, Any]) -> str:
        """What a row calls this field; its first name if the row lacks it."""
        return self.alias if self.alias and self.alias in row and row.get(self.name) is None else self.name

    def find(self, row: Mapping[str, Any]) -> Any:
        """The raw value of this field in ``row``: under its name, else under its alias, else None."""
        value = row.get(self.name)
        return row.get(self.alias) if value is None and self.alias else value


#: How much a row counts in training; of all tasks.
WEIGHT = Field("weight", "number", required=False)


@dataclass
class ParsedRow:
    """The outcome for one row: values by field name, what is wrong with it, and what was noticed in passing.

    Attributes:
        id: The id as text, None if the row has none.
        values: Clean values by field name.
        problems: (field, message) of everything wrong with the row.
        dropped: Why the row is left out although nothing is wrong with it, or None.
        unlearnable: Why the row can be scored but not learnt, or None.
        notes: What was changed or overlooked on purpose; equal notes of many rows are counted together.
    """

    id: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    dropped: str | None = None
    unlearnable: str | None = None
    notes: list[str] = field(default_factory=list)


def parse_row(row: Mapping[str, Any], fields: Sequence[Field], *, official: bool = False) -> ParsedRow:
    """Check and clean one row; every problem is collected, none is raised.

    Args:
        row: The row as read from disk.
        fields: The fields of the task.
        official: The row is of a published benchmark, whose scoring counts every row: texts without a word stay.

    Returns:
        Clean values and everything there is to say about the row.
    """
    parsed = ParsedRow()
    try:
        parsed.id = parse_id(row.get("id"))
    except FieldError as error:
        parsed.problems.append(("id", str(error)))
    for spec in fields:
        try:
            parsed.values[spec.name] = _parse_value(spec, spec.find(row), parsed.notes)
        except WordlessError as error:
            if not official:
                parsed.problems.append((spec.name_in(row), str(error)))
                continue
            parsed.values[spec.name] = error.value
            parsed.notes.append(f"no words in {spec.name_in(row)!r} (kept: the official scoring counts every row)")
            if spec.kind == "texts":
                parsed.unlearnable = f"no words in {spec.name_in(row)!r}, nothing to learn"
        except FieldError as error:
            parsed.problems.append((spec.name_in(row), str(error)))
    labels = [parsed.values.get(spec.name) for spec in fields if spec.kind == "label"]
    if not parsed.problems and NO_LABEL in labels:
        parsed.dropped = f"label {NO_LABEL!r} (no majority among the annotators)"
    return parsed


def asked_fields(fields: Sequence[Field]) -> tuple[Field, ...]:
    """The fields that a model is given: the question or the hypothesis; none for captions."""
    return tuple(field for field in fields if field.kind == "text" and field.required)


def parse_id(value: Any) -> str | None:
    """An id as text: 7 and "7" are the same id, "007" is another one.

    Raises:
        FieldError: Neither text nor a whole number.
    """
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        cleaned = clean_text(value)
        if cleaned:
            return cleaned
    raise FieldError(f"is {describe(value)}; an id is a text or a whole number")


def clean_text(text: str) -> str:
    """One line of text: control characters and line separators become spaces, outer white space goes.

    Raises:
        FieldError: The text holds half a surrogate pair, which no file and no tokenizer can hold.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise FieldError("is not valid Unicode (half a surrogate pair)") from None
    return _CONTROL.sub(" ", text).strip()


#: Millions of answers are few different ones.
_clean_entry = lru_cache(maxsize=1 << 16)(clean_text)


def has_words(text: str) -> bool:
    """True if some visible character is no punctuation and no ASCII sign (emoji count)."""
    return any(
        _shows(character) and unicodedata.category(character)[0] not in ("PS" if character.isascii() else "P")
        for character in text
    )


def is_visible(text: str) -> bool:
    """True if some character shows: of others (zero-width, control, accents without a letter) no token may be left."""
    return any(map(_shows, text))


def _shows(character: str) -> bool:
    category = unicodedata.category(character)
    # Mn: an accent belongs to the character in front of it; tokenizers for lower case drop it.
    return category[0] not in "ZC" and category != "Mn" and character not in _BLANK


def describe(value: Any) -> str:
    """Name a wrong value for a message, shortened."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    names = {dict: "an object", list: "a list", bool: "a boolean", type(None): "null"}
    shown = json.dumps(value, ensure_ascii=True, default=str)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return f"{names.get(type(value), 'the value')} ({shown})" if value is not None else "null"


def _parse_value(spec: Field, value: Any, notes: list[str]) -> Any:
    if value is None or value == "" or value == []:
        if not spec.required:
            return None
        if value == "" and spec.kind in ("text", "texts"):
            raise WordlessError("is missing or empty", "" if spec.kind == "text" else [""])
        raise FieldError("is missing or empty")
    return _PARSERS[spec.kind](spec, value, notes)


def _parse_text(spec: Field, value: Any, notes: list[str]) -> str | None:
    if not spec.required and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise FieldError(f"is {describe(value)}; expected text")
    cleaned = clean_text(value)
    if spec.required and not cleaned:
        raise WordlessError("is only white space", cleaned)
    if spec.required and spec.words and not has_words(cleaned):
        raise WordlessError(f"has no words: {describe(value)}", cleaned)
    return cleaned or None


def _parse_texts(spec: Field, value: Any, notes: list[str]) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    texts = [_entry(entry) for entry in entries]
    full = [text for text in texts if (has_words(text) if spec.words else is_visible(text))]
    if not full:
        unseen = "no visible character" if any(texts) and not any(map(is_visible, texts)) else "no usable entry"
        raise WordlessError(f"has {unseen}: {describe(value)}", texts)
    if len(full) < len(texts):
        done = "kept for scoring, never a training target" if spec.keep_empty else "left out"
        notes.append(f"empty entries in {spec.name!r} ({done})")
    return texts if spec.keep_empty else full


def _entry(value: Any) -> str:
    """One entry of a list: text, or a number as text ("4" for 4 and 4.0); null is an empty entry."""
    if value is None:
        return ""
    if isinstance(value, str):
        return _clean_entry(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else str(value)
    hint = '; write "yes"/"no" or "true"/"false" as text' if isinstance(value, bool) else ""
    raise FieldError(f"holds {describe(value)}; expected text or numbers{hint}")


def _parse_label(spec: Field, value: Any, notes: list[str]) -> str:
    """A label name: stripped and lower-case. JSON booleans have one, numbers have none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        raise FieldError(f"is {describe(value)}; write the name of the label, numbers differ between code bases")
    label = clean_text(value).lower()
    if label.lstrip("-").isdigit():
        raise FieldError(f"is the number {label!r}; write the name of the label, numbers differ between code bases")
    if label != NO_LABEL and not has_words(label):
        raise FieldError("is missing or empty" if not label else f"has no words: {describe(value)}")
    return label


def _parse_flag(spec: Field, value: Any, notes: list[str]) -> bool:
    word = str(value).strip().lower() if isinstance(value, (bool, int, str)) else ""
    if word not in _FLAGS:
        raise FieldError(f"is {describe(value)}; expected true or false, or 1 or 0")
    return _FLAGS[word]


def _parse_number(spec: Field, value: Any, notes: list[str]) -> float:
    number = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):  # no number; a whole number beyond all floats
            number = float(value)
    if not 1 / _GREATEST <= number <= _GREATEST:
        raise FieldError(f"is {describe(value)}; expected a number from {1 / _GREATEST:f} to {_GREATEST:,}")
    return number


_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_PARSERS: dict[str, Callable[[Field, Any, list[str]], Any]] = {
    "text": _parse_text,
    "texts": _parse_texts,
    "label": _parse_label,
    "flag": _parse_flag,
    "number": _parse_number,
}
