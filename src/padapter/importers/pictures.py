"""Find the picture that a foreign file names: as written, or by its file name somewhere below the given folders."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from padapter.data.images import IMAGE_SUFFIXES
from padapter.data.schema import describe
from padapter.data.stores import FolderImages, spelling
from padapter.errors import UserError

#: How deep folders are searched for a picture that is not where its name says.
DEPTH = 6
_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
_NUMBER = re.compile(r"(\d+)$")


class LookupProblem(UserError):  # noqa: N818 (it is about a picture that somebody looked for)
    """No picture, or none that is certain.

    Attributes:
        reason: The kind of problem, the same for all pictures that have it.
        detail: What it was in this case.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Pictures:
    """The pictures in some folders.

    Args:
        folders: Where to look, in this order. Nothing outside them is ever used, whatever a file says.
        without: A folder that is not searched: the destination, where it lies inside.
    """

    def __init__(self, folders: Sequence[Path], without: Path | None = None) -> None:
        missing = [folder for folder in folders if not folder.is_dir()]
        if missing:
            raise UserError(f"--images: {missing[0]}: no such folder.")
        self.folders = list(folders)
        self.without = None if without is None or without.absolute() in map(Path.absolute, folders) else without
        self.stores = [FolderImages(folder) for folder in folders]

    def find(self, value: Any) -> tuple[Path, str | None]:
        """The file that a value names.

        Args:
            value: A path, a file name with or without its suffix, or a number that ends a file name.

        Returns:
            The file, and what had to be done to find it: None if it is just where the value says.

        Raises:
            LookupProblem: There is none, or several fit.
        """
        if isinstance(value, Path):
            return value, None
        if isinstance(value, int) and not isinstance(value, bool):
            return self._only(self._by_number.get(value, []), str(value)), None
        if not isinstance(value, str) or not value.strip():
            raise LookupProblem("no picture is named", describe(value))
        text = value.strip()
        if _URL.match(text):
            raise LookupProblem("the picture is a web address: download it first", text)
        for store in self.stores:
            # The path inside the folder, also of one that is absolute or makes a detour.
            top = store.root.absolute()
            path = Path(os.path.normpath(top / text.replace("\\", "/")))
            if path.is_relative_to(top):
                with contextlib.suppress(UserError):
                    return store.root / store.locate(path.relative_to(top).as_posix()), None
        return self._by_file_name(text)

    def all(self) -> list[Path]:
        """Every picture in the folders, sorted."""
        return sorted({path for folder in self.folders for path in self._walk(folder)})

    def _by_file_name(self, text: str) -> tuple[Path, str | None]:
        name = PurePosixPath(text.replace("\\", "/")).name
        same = self._by_name.get(spelling(name, suffix=True), [])
        if same:
            fixed = None if name == text else "the picture was found by its file name, not where its path says"
            return self._only(same, text), fixed
        stems = self._by_stem.get(spelling(name, suffix=False), [])
        if not stems and name.isascii() and name.isdigit():
            stems = self._by_number.get(int(name), [])
        return self._only(stems, text), "the picture was named without its suffix"

    def _only(self, paths: list[Path], text: str) -> Path:
        if not paths:
            raise LookupProblem("picture not found", text)
        if len(paths) > 1:
            raise LookupProblem("several pictures fit", f"{text} could be {paths[0]} or {paths[1]}")
        return paths[0]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        return _index(self.all(), lambda path: spelling(path.name, suffix=True))

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        return _index(self.all(), lambda path: spelling(path.stem, suffix=False))

    @cached_property
    def _by_number(self) -> dict[int, list[Path]]:
        return _index(self.all(), lambda path: int(found[1]) if (found := _NUMBER.search(path.stem)) else None)

    def _walk(self, top: Path) -> Iterator[Path]:
        for folder, names, files in os.walk(top):
            here = Path(folder)
            deep = len(here.relative_to(top).parts) >= DEPTH
            names[:] = [] if deep else sorted(name for name in names if self._searched(here / name))
            yield from (here / name for name in files if is_picture(name))

    def _searched(self, folder: Path) -> bool:
        return not folder.name.startswith(".") and (
            self.without is None or folder.absolute() != self.without.absolute()
        )


def is_picture(name: str) -> bool:
    """Whether a file is taken for a picture by its name; whether it is one shows when it is opened."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _index(paths: list[Path], key: Any) -> dict[Any, list[Path]]:
    found: dict[Any, list[Path]] = {}
    for path in paths:
        if (name := key(path)) is not None:
            found.setdefault(name, []).append(path)
    return found
