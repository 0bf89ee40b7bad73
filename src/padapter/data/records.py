"""Walk along big JSON files record by record, holding one record at a time.

The annotations of VQA v2 are 360 MB of text on one line; as Python objects they would take ten times that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from padapter.errors import UserError

_CHUNK = 1 << 20
_SPACE = " \t\r\n"


def members(path: Path, *names: str, optional: tuple[str, ...] = ()) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The records of some lists of a JSON file that holds one object, such as ``{"images": [...], ...}``.

    Args:
        path: The file, in UTF-8 with or without a byte order mark.
        *names: The lists; other content is passed over.
        optional: Further lists, which the file may lack.

    Yields:
        Name of the list, number of the record in it (from 1), and the record, in the order of the file.

    Raises:
        UserError: Not JSON, not one object, or a list is missing or holds something else than objects.
    """
    found = []
    with _Walker(path) as walker:
        if walker.peek() != "{":
            raise UserError(
                f"{path}: expected one JSON object with {_listed(names)}, but it begins with {walker.shown()}."
            )
        walker.skip()
        while walker.peek() != "}":
            name = walker.value()
            walker.skip(":")
            found.append(name)
            if walker.peek() != "[":
                walker.value()
            else:
                wanted = name in names or name in optional
                yield from ((name, *item) for item in walker.records(checked=wanted) if wanted)
            if walker.peek() == ",":
                walker.skip()
        walker.skip()
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{path}: lacks {_listed(missing)}; it has: {', '.join(found)}. Is it the right file?")


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a JSON list, or of JSON lines, whatever the suffix says.

    Args:
        path: The file, in UTF-8 with or without a byte order mark.

    Yields:
        Number of the record (from 1), and the record.

    Raises:
        UserError: Not JSON, or not records.
    """
    with _Walker(path) as walker:
        if walker.peek() == "[":
            yield from walker.records(checked=True)
            return
        number = 0
        while walker.peek():
            number += 1
            yield number, walker.record(number)
    if not number:
        raise UserError(f"{path}: is empty.")


class _Walker:
    """A text that is read as far as it is needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.decoder = json.JSONDecoder()
        self.text = ""
        self.position = 0
        self.before = 0
        self.at_end = False

    def __enter__(self) -> _Walker:
        try:
            # newline="": positions in messages are those of the file.
            self.handle = self.path.open(encoding="utf-8-sig", newline="")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}).") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.handle.close()

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self.position < len(self.text):
                if self.text[self.position] not in _SPACE:
                    return self.text[self.position]
                self.position += 1
            if not self._more():
                return ""

    def skip(self, expected: str = "") -> None:
        """Pass over one character."""
        if self.peek() == "" or (expected and self.peek() != expected):
            self._fail(f"expected {expected!r}" if expected else "it breaks off")
        self.position += 1

    def value(self) -> Any:
        """The value that begins here."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.position)
            except (ValueError, RecursionError) as error:
                if not self._more():
                    self._fail(getattr(error, "msg", None) or type(error).__name__)
                continue
            # A number at the end of what was read may go on.
            if end == len(self.text) and self._more():
                continue
            self.position = end
            return value

    def records(self, *, checked: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and content of each item of the list that begins here."""
        self.skip("[")
        number = 0
        while self.peek() != "]":
            number += 1
            yield number, self.record(number) if checked else self.value()
            if self.peek() == ",":
                self.skip()
            elif self.peek() != "]":
                self._fail("expected ',' or ']'")
        self.skip()

    def record(self, number: int) -> dict[str, Any]:
        """The object that begins here."""
        value = self.value()
        if not isinstance(value, dict):
            raise UserError(f"{self.path}, record {number}: is {type(value).__name__}, not an object.")
        return value

    def shown(self) -> str:
        """What begins here, for a message."""
        return repr(self.text[self.position : self.position + 20]) if self.peek() else "nothing: it is empty"

    def _more(self) -> bool:
        """Read on, twice as much as is pending; False at the end."""
        if self.at_end:
            return False
        pending = self.text[self.position :]
        try:
            new = self.handle.read(max(_CHUNK, len(pending)))
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: is not UTF-8 ({error.reason}).") from error
        self.at_end = not new
        self.before += self.position
        self.text, self.position = pending + new, 0
        return bool(new)

    def _fail(self, why: str) -> None:
        raise UserError(
            f"{self.path}: is not JSON at character {self.before + self.position + 1} ({why}). "
            "A download that broke off?"
        )


def _listed(names: Any) -> str:
    return " and ".join(f"a list {name!r}" for name in names)
