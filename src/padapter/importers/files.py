"""Read foreign files, with errors that say where."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from padapter.data.readers import RawRow, read_rows
from padapter.data.sources import SPLITS
from padapter.errors import UserError
from padapter.importers.base import SplitOptions, expect
from padapter.importers.pictures import Pictures

_BETWEEN_WORDS = re.compile(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
#: Words of published file names that are written as one, besides the names of splits.
_SPLIT_WORDS = {
    "trainval": "train",
    "minival": "validation",
    "testing": "test",
    "testdev": "test",
    "teststd": "test",
}


def existing(source: str) -> Path:
    """The path of SRC.

    Raises:
        UserError: There is nothing.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"{source}: no such file or folder.")
    return path


def only_file(source: str, pattern: str, fits: Callable[[Path], bool] = lambda path: True) -> Path:
    """SRC itself if it is a file, else the only file in it of that pattern that fits.

    Raises:
        UserError: None or several.
    """
    path = existing(source)
    if path.is_file():
        return path
    found = [file for file in sorted(path.glob(pattern)) if file.is_file() and fits(file)]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{source}: expected one file {pattern}, found {names}; name the file itself.")
    return found[0]


def rows_of(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row is, and the row.

    Raises:
        UserError: for a line that cannot be read.
    """
    return readable(read_rows(file, strict=False))


def readable(rows: list[RawRow]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same of rows that were read.

    Raises:
        UserError: for a row that could not be.
    """
    for row in rows:
        if row.values is None:
            raise UserError(f"{row.file}, line {row.line}: {row.error}.")
        yield f"{row.file}, line {row.line}", row.values


def json_of(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: It is none.
    """
    try:
        return json.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not JSON ({error}).") from error


def records(file: Path, content: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each record of ``content[key]`` is, and the record.

    Raises:
        UserError: It is not a list of objects.
    """
    listed = content[key]
    expect(isinstance(listed, list), f"{file}: {key}", f"is {type(listed).__name__}; expected a list of records.")
    for number, record in enumerate(listed):
        where = f"{file}: {key}[{number}]"
        expect(isinstance(record, dict), where, f"is {type(record).__name__}; expected an object with named fields.")
        yield where, record


def pictures_of(options: SplitOptions, folder: Path) -> Pictures:
    """The pictures in ``--images`` or, without it, in the folder of the source."""
    folders = [folder] if options.images is None else [Path(options.images).expanduser()]
    return Pictures(folders, without=Path(options.destination).expanduser())


def split_called(name: Any) -> str | None:
    """The split that goes by a name: ``val`` is ``validation``."""
    word = str(name).strip().lower()
    return next((split for split, names in SPLITS.items() if word in names), None)


def split_in_name(name: str) -> str | None:
    """The split that a file name such as ``captions_val2017`` speaks of: the first of the words train, val, test.

    Only whole words count, between digits, marks and changes of case: ``latest`` and ``carnival`` speak of none.
    """
    words = (word.lower() for word in _BETWEEN_WORDS.split(name))
    return next((split for word in words if (split := _SPLIT_WORDS.get(word) or split_called(word))), None)
