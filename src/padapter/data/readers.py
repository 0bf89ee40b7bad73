"""Read rows from JSON lines, JSON lists and CSV, with the line of each, collecting what cannot be read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padapter.errors import UserError

#: Suffixes of annotation files, in the order in which they are looked for.
ANNOTATION_SUFFIXES = (".jsonl", ".json", ".csv")

_SPACE = " \t\r\n"


@dataclass(frozen=True)
class RawRow:
    """One row as it was read.

    Attributes:
        file: Name of the file for messages.
        line: The line where the row begins (of a table: the row, counted from 1).
        values: The row, or None if it could not be read.
        error: Why it could not be read.
        fatal: What follows could not be read either.
    """

    file: str
    line: int
    values: dict[str, Any] | None
    error: str | None = None
    fatal: bool = False


def read_rows(path: Path, *, strict: bool = True) -> list[RawRow]:
    """Read every row of an annotation file.

    JSON lines and a JSON list are told apart by content, so the wrong suffix does no harm. A byte order mark, CRLF
    and blank lines are fine. A CSV cell that begins with ``[`` and ends with ``]`` is a JSON list.

    Args:
        path: A ``.jsonl``, ``.json`` or ``.csv`` file in UTF-8.
        strict: A CSV cell in brackets must be a JSON list; otherwise one that is none is text, as other people's
            tables have it (``[unreadable]``).

    Returns:
        The rows in order; unreadable ones carry an ``error``.

    Raises:
        UserError: No such file, an unknown suffix, an empty file, or not a table of rows at all.
    """
    if path.suffix.lower() not in (*ANNOTATION_SUFFIXES, ".ndjson"):
        raise UserError(f"{path}: unknown kind of file; data are .jsonl, .json or .csv files, or a folder.")
    content = _content(path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: is UTF-16; save it as UTF-8.")
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise UserError(f"{path}: is empty.")
    if path.suffix.lower() == ".csv":
        return list(_read_csv(path, _utf8(path, content), strict=strict))
    if content.lstrip().startswith(b"["):
        return list(_read_json_list(path, content))
    return list(_read_json_lines(path, content))


def _read_json_lines(path: Path, content: bytes) -> Iterator[RawRow]:
    whole = _single_object(content)
    if whole is not None:
        if "image" not in whole and any(_holds_objects(value) for value in whole.values()):
            raise UserError(
                f"{path}: holds one JSON object ({_keys(whole)}), not rows. Expected one row per line or "
                "a list of rows; COCO and VQA files are converted by `padapter data from-coco` and `from-vqa`."
            )
        yield RawRow(str(path), 1, whole)
        return
    # Only "\n" ends a line: U+2028 and its like are legal inside JSON texts.
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield RawRow(str(path), number, None, f"is not UTF-8 (byte {error.start} of the line)")
        except (ValueError, RecursionError) as error:
            yield RawRow(str(path), number, None, f"is not JSON ({_json_message(error)})")
        else:
            yield _as_row(path, number, value)


def _single_object(content: bytes) -> dict[str, Any] | None:
    """The one object that fills the file, or None if the file is something else (rows, most likely)."""
    first, _, rest = content.strip().partition(b"\n")
    if rest:
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            pass
        else:
            return None  # the first line is complete: rows
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _holds_objects(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))


def _read_json_list(path: Path, content: bytes) -> Iterator[RawRow]:
    """Walk along the list item by item, so that each row knows its line and rows before an error are kept."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield RawRow(str(path), line, None, f"is not UTF-8 (byte {error.start} of the file)", fatal=True)
        return
    decoder = json.JSONDecoder()
    position = _skip(text, text.index("[") + 1)
    line, counted = 1, 0
    while True:
        line, counted = line + text.count("\n", counted, position), position
        if text.startswith("]", position):
            after = _skip(text, position + 1)
            if after < len(text):
                line += text.count("\n", counted, after)
                yield RawRow(str(path), line, None, "has text after the end of the list", fatal=True)
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            at = getattr(error, "lineno", line)
            yield RawRow(str(path), at, None, f"is not JSON ({_json_message(error)}); reading stopped here", fatal=True)
            return
        yield _as_row(path, line, value)
        position = _skip(text, position)
        if text.startswith(",", position):
            position = _skip(text, position + 1)
        elif not text.startswith("]", position):
            line += text.count("\n", counted, position)
            yield RawRow(str(path), line, None, "is not JSON (expected ',' or ']'); reading stopped here", fatal=True)
            return


def read_csv(path: Path, *, separator: str | None = None, encoding: str = "utf-8") -> list[RawRow]:
    """Read a table whatever its suffix, separator and encoding; a cell in brackets that is no JSON list is text.

    Args:
        path: The file.
        separator: The mark between cells; None tells it from the first line: a comma, a semicolon or a tab.
        encoding: A name that Python knows; a byte order mark is dropped.

    Returns:
        The rows in order; unreadable ones carry an ``error``.

    Raises:
        UserError: No such file, another encoding, an empty file, or a header that names a column twice.
    """
    content = _content(path)
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise UserError(f"--encoding: {encoding!r} is not known; usual ones are utf-8, utf-16 and cp1252.") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: is not {encoding}; name its encoding with --encoding, e.g. cp1252 or utf-16."
        ) from error
    if not text.strip():
        raise UserError(f"{path}: is empty.")
    return list(_read_csv(path, text, separator, strict=False))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error


def _utf8(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: is not UTF-8; save the table as UTF-8.") from error


def _read_csv(path: Path, text: str, separator: str | None = None, *, strict: bool) -> Iterator[RawRow]:
    header_line = text.lstrip("\r\n").splitlines()[0]
    delimiter = separator or max(",;\t", key=header_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    begin = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield RawRow(str(path), begin, None, f"is not CSV ({error}); reading stopped here", fatal=True)
            return
        if cells is None:
            return
        line, begin = begin, reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _check_header(path, cells)
        elif len(cells) > len(header):
            yield RawRow(str(path), line, None, f"has {len(cells)} cells, the header has {len(header)}")
        else:
            yield _csv_row(path, line, dict(zip(header, cells, strict=False)), strict=strict)


def _check_header(path: Path, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise UserError(f"{path}, line 1: the header names {', '.join(map(repr, repeated))} more than once.")
    return header


def _csv_row(path: Path, line: int, cells: dict[str, str], *, strict: bool) -> RawRow:
    values: dict[str, Any] = {}
    for name, cell in cells.items():
        stripped = cell.strip()
        if not stripped:
            continue
        values[name] = cell
        if stripped.startswith("[") and stripped.endswith("]"):
            try:
                values[name] = json.loads(stripped)
            except (ValueError, RecursionError) as error:
                if not strict:
                    continue
                message = f"the cell {name!r} looks like a list but is not JSON ({_json_message(error)})"
                return RawRow(str(path), line, None, message)
    return RawRow(str(path), line, values)


def _as_row(path: Path, line: int, value: Any) -> RawRow:
    if isinstance(value, dict):
        return RawRow(str(path), line, value)
    return RawRow(str(path), line, None, f"is {type(value).__name__}, not an object with named fields")


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position


def _json_message(error: Exception) -> str:
    return getattr(error, "msg", None) or str(error) or type(error).__name__


def _keys(value: dict[str, Any]) -> str:
    names = list(value)
    return ", ".join(map(repr, names[:6])) + (", ..." if len(names) > 6 else "")
