"""Where the pictures of a data set are: a folder beside the annotations, or a column of a ``datasets`` table."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import PIL

from padapter.data.images import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    ImageError,
    MissingImageError,
    read_file,
    verify_image,
)
from padapter.data.ledger import Identity, Ledger
from padapter.data.schema import FieldError, describe

if TYPE_CHECKING:
    import datasets

#: How much of each end of an image file enters the fingerprint.
_STAMPED_BYTES = 64 * 1024

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
_DRIVE = re.compile(r"^[a-zA-Z]:")


class ImageStore(Protocol):
    """What checking and loading need to know about pictures."""

    @property
    def place(self) -> str | None:
        """The folder that keys are relative to; None if a key means nothing outside its table."""

    def locate(self, value: Any) -> str:
        """The key of the picture that a row's ``image`` value names; FieldError or ImageError if there is none."""

    def verify(self, key: str, *, decode: bool) -> None:
        """Raise ImageError if the picture cannot be opened."""

    def stamp(self, key: str) -> str:
        """A short text that changes when the picture is replaced by another."""

    def read(self, key: str) -> bytes:
        """The encoded picture; ImageError if it cannot be read."""

    def attach(self, table: datasets.Dataset, keys: Sequence[str]) -> datasets.Dataset:
        """``table`` with a column ``image`` (``datasets.Image(decode=False)``), one key per row."""

    def unreferenced(self, keys: set[str]) -> list[str]:
        """Pictures beside the referenced ones that no row names."""

    def remember(self) -> None:
        """Keep for the next start what was found out about pictures."""


@dataclass
class FolderImages:
    """Pictures named by paths relative to ``root``.

    A name that does not exist as written is looked for in its other Unicode form (NFC/NFD) and with its suffix in
    other case: archives and file systems change both. Each folder is listed once instead of asking for every file.
    """

    root: Path
    _names: dict[PurePosixPath, frozenset[str]] = field(default_factory=dict)
    _listings: dict[Path, dict[str, list[str]]] = field(default_factory=dict)
    _located: dict[str, str] = field(default_factory=dict)
    _stamps: dict[str, str] = field(default_factory=dict)
    _looked_at: dict[str, Identity | None] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The root, resolved."""
        return str(self.root.resolve())

    def locate(self, value: Any) -> str:
        """The path relative to the root, in the spelling of the file system."""
        if isinstance(value, str) and value in self._located:
            return self._located[value]
        if not isinstance(value, str) or not value.strip():
            raise FieldError(f"is {describe(value)}; expected the path of an image" if value else "is missing or empty")
        if _URL.match(value):
            raise FieldError(f"is a web address ({value}); download the image and give its path")
        if "\\" in value or "\x00" in value:
            raise FieldError(f"is {describe(value)}; write paths with forward slashes")
        path = PurePosixPath(value)
        if path.is_absolute() or _DRIVE.match(value) or ".." in path.parts:
            raise FieldError(f"is {describe(value)}; give a path inside {self.root}, neither absolute nor with '..'")
        found = self._find(path)
        if found is None:
            raise MissingImageError(f"{self.root / path}: image not found.")
        self._located[value] = found.as_posix()
        return self._located[value]

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger(self.root, f"{_STAMPED_BYTES} {MAX_PIXELS} Pillow {PIL.__version__}")

    def verify(self, key: str, *, decode: bool) -> None:
        """Open the file, unless an earlier start has found its header and its end sound."""
        if not decode and (known := self._ledger.stamp(key)) is not None:
            self._stamps[key] = known
            return
        before = self._ledger.identity(key)
        verify_image(self.root / key, decode=decode)
        self._looked_at[key] = before

    def stamp(self, key: str) -> str:
        """The size of the file, and a hash of its first and last 64 KiB."""
        if key in self._stamps:
            return self._stamps[key]
        stamp = _file_stamp(self.root / key)
        if key in self._looked_at:
            self._ledger.note(key, self._looked_at[key], stamp)
        return stamp

    def remember(self) -> None:
        """Keep stamps of sound pictures, if there are many new ones."""
        self._ledger.keep()

    def read(self, key: str) -> bytes:
        """The content of the file."""
        return read_file(self.root / key)

    def attach(self, table: datasets.Dataset, keys: Sequence[str]) -> datasets.Dataset:
        """Add a column of paths; files are read when a row is used."""
        root = self.root.resolve()
        return with_paths(table, [str(root / key) for key in keys])

    def unreferenced(self, keys: set[str]) -> list[str]:
        """Images in the folders of referenced images (these only: the root may be a home folder)."""
        folders = {PurePosixPath(key).parent for key in keys}
        found = []
        for folder in sorted(folders):
            for entry in sorted((self.root / folder).iterdir()):
                name = (folder / entry.name).as_posix()
                if entry.suffix.lower() in IMAGE_SUFFIXES and name not in keys:
                    found.append(name)
        return found

    def _find(self, path: PurePosixPath) -> PurePosixPath | None:
        # What is not listed as written may still exist: file systems differ in what they take for the same name.
        if path.name in self._names_in(path.parent) or (self.root / path).exists():
            return path
        found = PurePosixPath()
        for depth, part in enumerate(path.parts, 1):
            if (self.root / found / part).exists():
                found /= part
                continue
            listing = self._listing(self.root / found)
            same = listing.get(spelling(part, suffix=depth == len(path.parts)), [])
            if len(same) > 1:
                raise ImageError(
                    f"{self.root / path}: image not found, and several files come close: {', '.join(same)}."
                )
            if not same:
                return None
            found /= same[0]
        return found

    def _names_in(self, folder: PurePosixPath) -> frozenset[str]:
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(self.root / folder))
            except OSError:  # missing, or not to be listed: asking for each file tells
                self._names[folder] = frozenset()
        return self._names[folder]

    def _listing(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._listings:
            names: dict[str, list[str]] = {}
            for entry in os.scandir(folder) if folder.is_dir() else ():
                names.setdefault(spelling(entry.name, suffix=entry.is_file()), []).append(entry.name)
            self._listings[folder] = names
        return self._listings[folder]


@dataclass
class ColumnImages:
    """Pictures in the column ``image`` of a ``datasets`` table; keys are row numbers."""

    table: datasets.Dataset

    @property
    def place(self) -> None:
        """None: keys are row numbers."""

    def locate(self, value: Any) -> str:
        """The number of the row, which is what ``value`` is."""
        record = self._record(str(value))
        if record is None or (record.get("bytes") is None and not record.get("path")):
            raise FieldError("is missing or empty")
        return str(value)

    def verify(self, key: str, *, decode: bool) -> None:
        """Open the bytes or the file of that row."""
        verify_image(self._record(key) or {}, decode=decode)

    def stamp(self, key: str) -> str:
        """A hash of the encoded picture, or the stamp of its file."""
        record = self._record(key) or {}
        if record.get("bytes") is not None:
            return hashlib.sha256(record["bytes"]).hexdigest()
        return _file_stamp(Path(record["path"]))

    def read(self, key: str) -> bytes:
        """The bytes, or the content of the file, of that row."""
        record = self._record(key) or {}
        return record["bytes"] if record.get("bytes") is not None else read_file(Path(record["path"]))

    def attach(self, table: datasets.Dataset, keys: Sequence[str]) -> datasets.Dataset:
        """Put the texts beside their pictures without copying a picture.

        Joining a *selection* of pictures would make ``datasets`` write them all again. So the texts are spread to
        the full length instead (row 0 stands in for unused rows), and the selection comes last.
        """
        import datasets

        numbers = [int(key) for key in keys]
        if numbers == list(range(len(self.table))):
            return datasets.concatenate_datasets([table, self.table], axis=1)
        places = [0] * len(self.table)
        for place, number in enumerate(numbers):
            places[number] = place
        spread = table.select(places).flatten_indices(keep_in_memory=True)
        return datasets.concatenate_datasets([spread, self.table], axis=1).select(numbers)

    def unreferenced(self, keys: set[str]) -> list[str]:
        """None: each picture belongs to its row."""
        return []

    def remember(self) -> None:
        """Nothing: pictures in a table are hashed as they are."""

    def _record(self, key: str) -> dict[str, Any] | None:
        return self.table[int(key)]["image"]


def with_paths(table: datasets.Dataset, paths: Sequence[str]) -> datasets.Dataset:
    """``table`` with a column ``image`` of records without bytes, one path per row."""
    import datasets
    import pyarrow as pa

    image = datasets.Image(decode=False)
    records = pa.StructArray.from_arrays(
        [pa.nulls(len(paths), pa.binary()), pa.array(paths, pa.string())], fields=list(image.pa_type)
    )
    info = datasets.DatasetInfo(features=datasets.Features({"image": image}))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path}\n".encode())
    rows = datasets.table.InMemoryTable(pa.table({"image": records}))
    column = datasets.Dataset(rows, info=info, fingerprint=digest.hexdigest()[:16])
    return datasets.concatenate_datasets([table, column], axis=1)


def _file_stamp(path: Path) -> str:
    with path.open("rb") as handle:
        return stamp_of(handle, os.fstat(handle.fileno()).st_size)


def stamp_of(handle: BinaryIO, size: int) -> str:
    """Size and a hash of both ends: reading every byte of a large data set would make each start of a run slow."""
    digest = hashlib.sha256(handle.read(_STAMPED_BYTES))
    handle.seek(max(handle.tell(), size - _STAMPED_BYTES))
    digest.update(handle.read())
    return f"{size}-{digest.hexdigest()}"


def spelling(name: str, *, suffix: bool) -> str:
    """One spelling for all Unicode forms of a name and, for files, all cases of its suffix."""
    composed = unicodedata.normalize("NFC", name)
    stem, dot, end = composed.rpartition(".")
    return f"{stem}{dot}{end.lower()}" if suffix and dot else composed
