"""Data specs that begin with a word and a colon: each word is one entry of a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from padapter.data.benchmarks import BENCHMARKS
from padapter.data.benchmarks.scheme import BenchmarkScheme
from padapter.data.shards.read import open_tars
from padapter.data.source import Source
from padapter.data.tables import from_table
from padapter.errors import UserError


class SeveralTasksError(UserError):
    """Data that serve several tasks: one has to be named."""


class Scheme(Protocol):
    """How specs that begin with some word are read. Every method may raise UserError."""

    def open(self, spec: str, task: str, split: str, seed: int) -> Source:
        """Read the split that the spec names, or else ``split``; ``task`` may be empty if that is not known yet."""

    def names_its_split(self, spec: str) -> bool:
        """Whether the spec stands for one split whatever split is asked for."""

    def canonical(self, spec: str, split: str) -> str:
        """One name for all names of a split; the data need not be there."""

    def splits(self, spec: str) -> list[str] | None:
        """The splits that are there; None where the spec is the split, or that cannot be told."""

    def task(self, spec: str) -> str | None:
        """The task that the data are for; None where their fields tell; SeveralTasksError where nothing does."""

    def remarks(self, spec: str) -> list[str]:
        """What a check should say besides."""


class TarScheme:
    """Tar files in the WebDataset layout: ``wds:FOLDER/train-{000000..000009}.tar``."""

    def open(self, spec: str, task: str, split: str, seed: int) -> Source:
        """Read them; they are one split."""
        return open_tars(spec)

    def names_its_split(self, spec: str) -> bool:
        """Always."""
        return True

    def canonical(self, spec: str, split: str) -> str:
        """The name itself."""
        return split

    def splits(self, spec: str) -> None:
        """None: the files are the split."""
        return

    def task(self, spec: str) -> None:
        """None: the fields tell."""
        return

    def remarks(self, spec: str) -> list[str]:
        """Nothing."""
        return []


class WorldScheme:
    """Built-in worlds: ``shapes:DOMAIN[:SPLIT[:SIZE]]``."""

    def open(self, spec: str, task: str, split: str, seed: int) -> Source:
        """Draw a split."""
        world, *parts = spec.split(":")
        if not 1 <= len(parts) <= 3 or not all(parts):
            raise UserError(f"{spec}: a built-in world is named {world}:DOMAIN[:SPLIT[:SIZE]].")
        domain = parts[0]
        split = parts[1] if len(parts) > 1 else split
        size: int | None = None
        if len(parts) > 2:
            if not parts[2].isascii() or not parts[2].isdigit() or int(parts[2]) < 1:
                raise UserError(f"{spec}: the size is a whole number above 0; got {parts[2]!r}.")
            size = int(parts[2])
        from padapter.worlds import load_world

        table = load_world(domain, task, split, size, seed)
        return from_table(table, f"{world}:{domain}", split, spec, root=None, trusted=True)

    def names_its_split(self, spec: str) -> bool:
        """Whether there is a part SPLIT."""
        return spec.count(":") > 1

    def canonical(self, spec: str, split: str) -> str:
        """The name itself."""
        return split

    def splits(self, spec: str) -> None:
        """None: every world has every split."""
        return

    def task(self, spec: str) -> str:
        """A world serves every task."""
        raise SeveralTasksError(f"{spec}: a built-in world serves every task")

    def remarks(self, spec: str) -> list[str]:
        """Nothing."""
        return []


#: How specs are read, by their first word.
SCHEMES: dict[str, Scheme] = {
    "shapes": WorldScheme(),
    "wds": TarScheme(),
    **dict.fromkeys(BENCHMARKS, BenchmarkScheme()),
}


def scheme_of(spec: str) -> Scheme | None:
    """What reads a spec; None for files, folders and hub ids. Without a colon, what exists is a file or folder."""
    word, colon, _ = spec.partition(":")
    return SCHEMES.get(word) if colon or not Path(spec).exists() else None
