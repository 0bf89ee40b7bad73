"""The index beside the shards of a split: what is in which tar file, and the rows.

``SPLIT.shards.jsonl`` holds a header, one line per picture and one line per row, in this order. With it a start of a
run reads one file instead of looking for hundreds of thousands of headers inside of tar files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from padapter.errors import UserError

FORMAT = "padapter-shards-1"
SUFFIX = ".shards.jsonl"


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        file: Its name; it lies beside the index.
        size: In bytes.
        images: Pictures in it.
    """

    file: str
    size: int
    images: int


@dataclass(frozen=True)
class Header:
    """What an index says of the split as a whole.

    Attributes:
        name: Short name of the data.
        split: Name of the split.
        task: Name of the task.
        rows: Rows.
        images: Pictures.
        fingerprint: Of the rows and pictures, as :func:`padapter.data.load_data` gives it.
        shards: The tar files.
        rule: Scoring rule that the data's publisher asks for.
        official: Whether the rows are those of a published benchmark, whose scoring counts every one of them.
        unanswered: Why there are no answers, if there are none.
        left_out: Rows of the source that were left out.
    """

    name: str
    split: str
    task: str
    rows: int
    images: int
    fingerprint: str
    shards: tuple[Shard, ...]
    rule: str | None = None
    official: bool = False
    unanswered: str | None = None
    left_out: int = 0


@dataclass(frozen=True)
class Place:
    """Where a picture lies.

    Attributes:
        shard: Number of its tar file in the header's list.
        offset: Of its first byte in the file.
        size: In bytes.
        stamp: What :meth:`padapter.data.stores.ImageStore.stamp` said of it in the source; None if unknown.
    """

    shard: int
    offset: int
    size: int
    stamp: str | None = None


@dataclass
class Index:
    """A whole index.

    Attributes:
        header: Of the split.
        places: Of the pictures, by key.
        rows: Key of the picture, id and values of each row.
    """

    header: Header
    places: dict[str, Place] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


def index_file(folder: Path, split: str) -> Path:
    """Where the index of a split lies."""
    return folder / f"{split}{SUFFIX}"


def indexed_splits(folder: Path) -> list[str]:
    """The splits whose shards lie in a folder."""
    return sorted(path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}"))


def lines_of(index: Index) -> Iterator[str]:
    """The lines of the file."""
    yield _line({"format": FORMAT, **asdict(index.header)})
    for key, place in index.places.items():
        yield _line({"image": key, "at": [place.shard, place.offset, place.size], "stamp": place.stamp})
    for row in index.rows:
        yield _line(row)


def read_header(path: Path) -> Header:
    """The first line of an index.

    Raises:
        UserError: It cannot be read.
    """
    with _opened(path) as stream:
        return _header(path, stream.readline())


def read_index(path: Path) -> Index:
    """Read an index.

    Raises:
        UserError: It cannot be read, or is not complete.
    """
    with _opened(path) as stream:
        index = Index(_header(path, stream.readline()))
        for number, line in enumerate(stream, 2):
            record = _record(path, number, line)
            if len(index.places) < index.header.images:
                index.places[record.get("image", "")] = _place(path, number, record, index.header.shards)
            elif isinstance(record.get("image"), str):
                index.rows.append(record)
            else:
                raise UserError(f"{path}, line {number}: is damaged (a row without a picture). Copy it again.")
    if len(index.rows) != index.header.rows:
        raise UserError(
            f"{path}: holds {len(index.rows)} of {index.header.rows} rows: a copy that broke off? Copy it again."
        )
    return index


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"


def _opened(path: Path) -> Any:
    try:
        # Bytes: a line that is no text is damaged, like any other.
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number}: is damaged ({error}). Copy it again.") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}, line {number}: is damaged. Copy it again.")
    return record


def _place(path: Path, number: int, record: dict[str, Any], shards: tuple[Shard, ...]) -> Place:
    at, stamp = record.get("at"), record.get("stamp")
    if (
        not (isinstance(at, list) and len(at) == 3 and all(isinstance(part, int) and part >= 0 for part in at))
        or at[0] >= len(shards)
        or at[1] + at[2] > shards[at[0]].size
        or not isinstance(record.get("image"), str)
        or not isinstance(stamp, str | None)
    ):
        raise UserError(f"{path}, line {number}: is damaged (no place of a picture). Copy it again.")
    shard, offset, size = at
    return Place(shard, offset, size, stamp)


def _header(path: Path, line: bytes) -> Header:
    record = _record(path, 1, line)
    if record.pop("format", None) != FORMAT:
        raise UserError(f"{path}: is not an index of this version of `padapter data shard`; write the shards anew.")
    try:
        header = Header(**{**record, "shards": tuple(Shard(**shard) for shard in record["shards"])})
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}, line 1: is damaged ({error}). Copy it again.") from error
    counts = (header.rows, header.images, *(shard.size for shard in header.shards))
    texts = (header.name, header.split, header.task, *(shard.file for shard in header.shards))
    if not all(isinstance(count, int) for count in counts) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path}, line 1: is damaged. Copy it again.")
    outside = [shard.file for shard in header.shards if Path(shard.file).name != shard.file]
    if outside:
        raise UserError(f"{path}, line 1: {outside[0]!r} is no file beside the index.")
    return header
