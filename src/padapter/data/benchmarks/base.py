"""What a benchmark is: its splits, the files that each needs, where these are officially found, and how they are read.

A benchmark is a value, :class:`Benchmark`, in a file of its own, and one line in the registry.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from padapter.data.columns import ColumnRows
from padapter.errors import UserError

#: Names of splits that every benchmark understands besides its own: those of the tool.
TOOL_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("training",),
    "val": ("validation", "dev", "valid"),
    "dev": ("validation", "val", "valid"),
}


@dataclass(frozen=True)
class Needed:
    """A file that a split needs.

    Attributes:
        name: Its official name.
        page: The page on which it is officially found.
        folders: Folders below the root in which it is looked for, in this order; ``*`` is any.
    """

    name: str
    page: str
    folders: tuple[str, ...] = ("", "*")

    def find(self, root: Path) -> Path | None:
        """The file below ``root``, or None.

        Raises:
            UserError: Several folders have one.
        """
        for folder in self.folders:
            places = _subfolders(root) if folder == "*" else [root / folder]
            found = [place / self.name for place in places if (place / self.name).is_file()]
            if len(found) > 1:
                raise UserError(f"{root}: has several {self.name}: {', '.join(map(str, found))}. Which one is meant?")
            if found:
                return found[0]
        return None


@dataclass(frozen=True)
class Pictures:
    """Where the pictures of a split may be.

    Attributes:
        folders: Folders below the root; the first that has a picture wins.
        page: The page on which they are officially found.
        key: From the file name of a picture to what stands for it whatever the naming, None for other files.
    """

    folders: tuple[str, ...]
    page: str
    key: Callable[[str], Hashable | None]


class PictureIndex:
    """The pictures that are there, by key, from one listing per folder.

    Args:
        root: The folder of the benchmark.
        pictures: Where to look.
    """

    def __init__(self, root: Path, pictures: Pictures) -> None:
        self.pictures = pictures
        self._paths: dict[Hashable, str] = {}
        for folder in pictures.folders:
            try:
                names = os.listdir(root / folder)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise UserError(f"{root / folder}: cannot be read ({error.strerror}).") from error
            for name in names:
                key = pictures.key(name)
                if key is not None:
                    self._paths.setdefault(key, f"{folder}/{name}" if folder else name)

    def __len__(self) -> int:
        return len(self._paths)

    def find(self, official: str) -> str:
        """Where the picture lies that should be at ``official``.

        Args:
            official: A path below the root; folder and form of the name may be others here.

        Returns:
            The path as it is here; ``official`` itself if there is no such picture (it is reported as missing then).
        """
        key = self.pictures.key(PurePosixPath(official).name)
        return official if key is None else self._paths.get(key, official)


@dataclass
class Reading:
    """What a reader is given, and what it fills.

    Attributes:
        root: The folder of the benchmark.
        files: The files of the form, by the names that the form gives them.
        pictures: The pictures that are there.
        rows: Takes the rows.
        left_out: Rows left out on purpose, by reason.
        notes: What is worth knowing besides.
        pages: Pages on which further pictures are officially found.
    """

    root: Path
    files: Mapping[str, Path]
    pictures: PictureIndex
    rows: ColumnRows = field(default_factory=ColumnRows)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Form:
    """One set of files that a split can be read from.

    Attributes:
        kind: ``official`` or ``BLIP-style``.
        files: The files by the names that ``read`` knows.
        read: Fills a :class:`Reading`.
    """

    kind: str
    files: Mapping[str, Needed]
    read: Callable[[Reading], None]

    def find(self, root: Path) -> dict[str, Path | None]:
        """What there is of the files."""
        return {name: needed.find(root) for name, needed in self.files.items()}


@dataclass(frozen=True)
class Split:
    """One split of a benchmark.

    Attributes:
        name: Its name here.
        forms: The forms in which it may lie on disk; the first complete one is read.
        pictures: Where its pictures may be.
        rows: How many rows the published split has.
        answered: Whether its answers are public.
        aliases: Other names, the official ones of files and servers.
        parts: What it shares with other splits of the benchmark: splits with a common part share pictures.
    """

    name: str
    forms: tuple[Form, ...]
    pictures: Pictures
    rows: int | None = None
    answered: bool = True
    aliases: tuple[str, ...] = ()
    parts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark.

    Attributes:
        name: The first word of a data spec.
        title: Its name for people.
        task: Name of the task.
        splits: Its splits.
        rule: The scoring rule that it asks for; None for the task's own.
        page: Where it is described; predictions on splits without public answers are sent in from there.
    """

    name: str
    title: str
    task: str
    splits: tuple[Split, ...]
    page: str
    rule: str | None = None

    def split(self, name: str) -> Split:
        """The split that goes by a name: its own, an official one or the tool's.

        Raises:
            UserError: None does; the message lists them.
        """
        for split in self.splits:
            if name == split.name:
                return split
        for split in self.splits:
            if name in (*split.aliases, *TOOL_NAMES.get(split.name, ())):
                return split
        known = ", ".join(split.name for split in self.splits)
        raise UserError(f"{self.name}: there is no split {name!r} of {self.title}; there are: {known}.")


def whole_number(value: Any) -> int | None:
    """An id that is a whole number, given as one or as its digits; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return None


def stem_key(name: str) -> str | None:
    """A picture known by its file name without suffix."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and stem and suffix.lower() in {"jpg", "jpeg", "png"} else None


def some(items: Sequence[Any], limit: int = 5) -> str:
    """The first few items, for a message."""
    shown = ", ".join(str(item) for item in items[:limit])
    return shown + (", ..." if len(items) > limit else "")


def _subfolders(root: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(root) if entry.is_dir())
    except OSError as error:
        raise UserError(f"{root}: cannot be read ({error.strerror}).") from error
