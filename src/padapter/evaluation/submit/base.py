"""What the file of an evaluation server is: a JSON list with one object per row, made of an id and a value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One line of our predictions.

    Attributes:
        id: of the row.
        text: what the model said.
        candidates: log-probability by candidate, the best ten; ``None`` where nothing was ranked.
    """

    id: str
    text: str
    candidates: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Format:
    """What one server accepts.

    Attributes:
        name: for ``--format``; that of a benchmark's data spec tells the format by itself.
        summary: one line about it.
        task: the task whose answers it takes.
        key_field: name of the id.
        key: the id of a row as the server spells it; raises ``ValueError`` saying what an id has to be.
        value_field: name of the answer.
        value: what the server is given for an answer.
        file_name: what the server wants the file to be called, as a pattern for the whole name; ``None`` for any.
        file_name_form: the same for people.
        note: a remark about the values of a file, from all answers; ``None`` if there is nothing to say.
    """

    name: str
    summary: str
    task: str
    key_field: str
    key: Callable[[str], int | str]
    value_field: str
    value: Callable[[Answer], str | float]
    file_name: str | None = None
    file_name_form: str = ""
    note: Callable[[list[Answer]], str | None] = lambda answers: None

    def entry(self, answer: Answer) -> dict[str, Any]:
        """One object of the file.

        Raises:
            ValueError: for an id of another kind.
        """
        return {self.key_field: self.key(answer.id), self.value_field: self.value(answer)}


def whole_number(text: str) -> int:
    """The id as a number; one that would be spelt otherwise ("007") belongs to other data."""
    if not re.fullmatch(r"0|[1-9][0-9]*", text):
        raise ValueError("an id is a whole number")
    return int(text)


def hexadecimal(text: str) -> str:
    """The id as it is, if it has nothing but hexadecimal digits."""
    if not re.fullmatch(r"[0-9A-Fa-f]+", text):
        raise ValueError("an id has hexadecimal digits only")
    return text


def image_name(text: str) -> str:
    """The id as it is, if it can be the name of a picture's file, without folders."""
    if not re.fullmatch(r"[^/\\]+\.[A-Za-z]+", text):
        raise ValueError("an id is the name of an image file, without folders")
    return text


def short_answer(answer: Answer) -> str:
    """The text without outer white space. Its case and punctuation are left to the server, which has its own rules."""
    return answer.text.strip()


def caption(answer: Answer) -> str:
    """The text on one line: the servers' tokeniser takes a carriage return or a line separator for the next caption."""
    return " ".join(answer.text.split())


def as_json(entries: list[dict[str, Any]]) -> str:
    """The file's content, in ASCII, one entry per line so that it can be looked at.

    Raises:
        ValueError: for a number that JSON has no word for.
    """
    lines = (json.dumps(entry, ensure_ascii=True, allow_nan=False) for entry in entries)
    return "[\n" + ",\n".join(lines) + "\n]\n"
