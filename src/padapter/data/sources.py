"""What ``--train DATA`` may be: a file, a folder, a ``datasets`` directory or hub id, a benchmark, a built-in world."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from padapter.data.advice import other_file, other_folder
from padapter.data.readers import ANNOTATION_SUFFIXES, read_rows
from padapter.data.schemes import scheme_of
from padapter.data.shards.index import indexed_splits
from padapter.data.shards.read import open_folder as open_shards
from padapter.data.source import Source
from padapter.data.stores import FolderImages
from padapter.data.tables import from_table
from padapter.errors import UserError

#: Names under which a split is looked for.
SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "dev", "valid"),
    "test": ("test",),
}

FORMS = (
    "a .jsonl, .json or .csv file beside its images; a folder with train/validation/test files, a datasets "
    "directory or shards; tar files wds:PATTERN; a hub id OWNER/NAME; a benchmark NAME:FOLDER[:SPLIT]; or a built-in "
    "world shapes:DOMAIN[:SPLIT[:SIZE]]"
)
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def open_source(spec: str, task: str, *, split: str = "train", seed: int = 0) -> Source:
    """Find and read what a data spec names.

    Args:
        spec: A file, folder, hub id, benchmark or world (see ``docs/data.md``).
        task: Name of the task, for worlds that serve several; may be empty for other data.
        split: Which split; a single file *is* the split, and the spec of a benchmark or a world may name its own.
        seed: For worlds.

    Returns:
        The rows and their images.

    Raises:
        UserError: Nothing is there, or it has no such split, or it is not data.
    """
    check_there(spec)
    scheme = scheme_of(spec)
    if scheme is not None:
        return scheme.open(spec, task, split, seed)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _open_folder(path, split)
    if path.exists():
        if path.suffix.lower() not in (*ANNOTATION_SUFFIXES, ".ndjson"):
            advice = other_file(path) or f"Data are {FORMS}."
            raise UserError(
                f"{path}: unknown kind of file; data are .jsonl, .json or .csv files, or a folder. {advice}"
            )
        return _from_file(path, path.name, split)
    return _open_hub(spec, split)


def check_there(spec: str) -> None:
    """Refuse a spec that names nothing, without reading anything; a benchmark or a hub id is not looked for.

    Raises:
        UserError: saying what a spec may be.
    """
    if not spec.strip():
        raise UserError(f"The data spec is empty. Data are {FORMS}.")
    path = Path(spec).expanduser()
    if scheme_of(spec) is not None or path.exists():
        return
    if path.suffix.lower() in (*ANNOTATION_SUFFIXES, ".ndjson") or spec.startswith((".", "/", "~")) or "\\" in spec:
        raise UserError(f"{spec}: no such file or folder.{_close_names(path)} Data are {FORMS}.")
    if not _HUB_ID.match(spec):
        raise UserError(f"{spec}: no such file or folder, and not a hub id.{_close_names(path)} Data are {FORMS}.")


def names_its_split(spec: str) -> bool:
    """Whether a spec stands for one split whatever split is asked for: a file, or a spec with SPLIT in its name."""
    scheme = scheme_of(spec)
    if scheme is not None:
        return scheme.names_its_split(spec)
    path = Path(spec).expanduser()
    return path.is_file() or path.suffix.lower() in (*ANNOTATION_SUFFIXES, ".ndjson")


def canonical_split(spec: str, split: str) -> str:
    """One name for all names of a benchmark's split: its ``val`` and ``validation`` are the same rows."""
    scheme = scheme_of(spec)
    return split if scheme is None else scheme.canonical(spec, split)


def available_splits(spec: str) -> list[str] | None:
    """The splits that a folder holds, in the order train, validation, test; None where the spec is the split."""
    scheme = scheme_of(spec)
    if scheme is not None:
        return scheme.splits(spec)
    path = Path(spec).expanduser()
    if not path.is_dir():
        return None
    if indexed_splits(path):
        return indexed_splits(path)
    if _is_saved_dataset(path):
        table = _load_from_disk(path)
        return [name for name in SPLITS if _match_split(name, list(table))] if isinstance(table, dict) else None
    splits = [split for split in SPLITS if split_files(path, split)]
    return splits or None


def _from_file(path: Path, name: str, split: str) -> Source:
    return Source(name, split, str(path), read_rows(path), FolderImages(path.parent))


def _open_folder(path: Path, split: str) -> Source:
    shards = indexed_splits(path)
    if shards:
        name = _match_split(split, shards)
        if name is None:
            raise UserError(f"{path}: has no shards of a split {split!r}; it has: {', '.join(shards)}.")
        return open_shards(path, name)
    if _is_saved_dataset(path):
        table = _load_from_disk(path)
        if isinstance(table, dict):
            name = _match_split(split, list(table))
            if name is None:
                raise UserError(f"{path}: has no split {split!r}; it has: {', '.join(table)}.")
            table = table[name]
        return from_table(table, path.resolve().name, split, str(path), root=path)
    files = split_files(path, split)
    if not files and not available_splits(str(path)):
        files = _existing(path, ["metadata"])
        if files:
            return _from_metadata(files, path.resolve().name, split)
    if not files:
        raise UserError(_no_split(path, split))
    if len(files) > 1:
        raise UserError(f"{path}: several files could be the split {split!r}: {', '.join(f.name for f in files)}.")
    if files[0].stem == "metadata":
        return _from_metadata(files, f"{path.resolve().name}/{split}", split)
    return _from_file(files[0], f"{path.resolve().name}/{files[0].name}", split)


def _from_metadata(files: list[Path], name: str, split: str) -> Source:
    """The ``imagefolder`` layout: ``metadata.jsonl`` or ``.csv`` whose image column is ``file_name``."""
    if len(files) > 1:
        raise UserError(f"{files[0].parent}: has several metadata files: {', '.join(f.name for f in files)}.")
    source = _from_file(files[0], name, split)
    for row in source.rows:
        if row.values is not None and "image" not in row.values and "file_name" in row.values:
            row.values["image"] = row.values.pop("file_name")
    return source


def split_files(path: Path, split: str) -> list[Path]:
    """The files of a folder that would be read as that split."""
    names = SPLITS.get(split, (split,))
    return _existing(path, [*names, *(f"{name}/metadata" for name in names)])


def _existing(path: Path, stems: list[str]) -> list[Path]:
    candidates = (path / f"{stem}{suffix}" for stem in stems for suffix in ANNOTATION_SUFFIXES)
    return [candidate for candidate in candidates if candidate.is_file()]


def _match_split(split: str, names: list[str]) -> str | None:
    return next((name for name in (split, *SPLITS.get(split, ())) if name in names), None)


def _no_split(path: Path, split: str) -> str:
    looked_for = ", ".join(f"{name}.jsonl" for name in SPLITS.get(split, (split,)))
    there = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in ANNOTATION_SUFFIXES)
    hint = f"It has: {', '.join(there[:10])}; a file can be named itself." if there else f"Data are {FORMS}."
    if available_splits(str(path)) is None:
        hint = other_folder(path) or hint
    return f"{path}: has no split {split!r} (looked for {looked_for}, also as .json and .csv). {hint}"


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _load_from_disk(path: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # damaged directories raise Arrow, JSON and OS errors alike
        raise UserError(f"{path}: is not a readable datasets directory ({type(error).__name__}: {error}).") from error


def _open_hub(spec: str, split: str) -> Source:
    import datasets

    try:
        splits = datasets.get_dataset_split_names(spec)
        name = _match_split(split, list(splits))
        table = datasets.load_dataset(spec, split=name) if name else None
    except Exception as error:  # the hub client raises a dozen classes, most of them not its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{spec}: no such file or folder here, and the data set could not be had from the hub ({reason}). "
            "Check the spelling and the network; offline, give a file or a folder."
        ) from error
    if table is None:
        raise UserError(f"{spec}: has no split {split!r}; it has: {', '.join(splits)}.")
    return from_table(table, spec, split, spec, root=None)


def _close_names(path: Path) -> str:
    """Did you mean: files beside the missing one with a similar name."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""
