"""What to type instead: for paths that are no data yet, and for fields of a wrong name."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Collection, Iterable
from pathlib import Path

from padapter.data.benchmarks import BENCHMARKS
from padapter.data.images import IMAGE_SUFFIXES
from padapter.errors import UserError

_TABLES = (".csv", ".tsv")
_LISTS = (".jsonl", ".json", ".ndjson")
_SPLITS = ("train", "training", "validation", "val", "dev", "valid", "test")
_SHEETS = (".xlsx", ".xls", ".ods")
#: Suffixes of texts beside pictures, as ``padapter data from-folder`` reads them.
_TEXTS = (".txt", ".caption")
#: How many entries of a folder are looked at.
_ENTRIES = 1000
_CLOSE = 0.7


def similar(present: Iterable[str], wanted: Collection[str]) -> dict[str, str]:
    """Names that are nearly right, with what is probably meant: ``answr`` is ``answer``.

    Args:
        present: Names that are there and not used.
        wanted: Names that are missing.

    Returns:
        What is meant by each name that is close to a wanted one.
    """
    closest = {name: difflib.get_close_matches(name.lower(), wanted, n=1, cutoff=_CLOSE) for name in sorted(present)}
    return {name: found[0] for name, found in closest.items() if found}


def other_columns(file: str) -> str:
    """The command that reads a file whose fields have names of their own; empty where there is none."""
    path = Path(file)
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (*_TABLES, *_LISTS):
        return ""
    name = "from-csv" if suffix in _TABLES else "from-vqa"
    # A file that looks like that of a split is in the way of what would be written beside it.
    beside = suffix in _TABLES and path.stem not in _SPLITS
    return f"`{_command(name, path, path.parent if beside else path.parent / 'data')}` reads columns of other names."


def other_file(path: Path) -> str:
    """What to do with a file that is no annotation file, by its suffix; empty where nobody knows."""
    suffix = path.suffix.lower()
    if suffix in _TABLES:
        return f"`{_command('from-csv', path, path.parent)}` makes data of it."
    if suffix in _SHEETS:
        table = path.with_suffix(".csv")
        return f"Save it as {table.name}; `{_command('from-csv', table, path.parent)}` makes data of that."
    return f"Shards are read with `wds:{path}`." if suffix == ".tar" else ""


def other_folder(folder: Path) -> str:
    """What a folder without split files looks like, with the command for it; empty if it looks like nothing known."""
    return _benchmark(folder) or _tables(folder) or _pictures(folder)


def _benchmark(folder: Path) -> str:
    """The benchmarks one of whose splits, or else one of whose files, lies in a folder."""
    whole, some = [], []
    for benchmark in BENCHMARKS.values():
        try:
            found = [list(form.find(folder).values()) for split in benchmark.splits for form in split.forms]
        except UserError:  # several files of one name: it looks like this benchmark
            found = [[folder]]
        if any(all(files) for files in found):
            whole.append(benchmark)
        elif any(any(files) for files in found):
            some.append(benchmark)
    likely = whole or some
    if not likely:
        return ""
    commands = " or ".join(f"`padapter data check {shlex.quote(f'{its.name}:{folder}')}`" for its in likely)
    return f"It looks like {' or '.join(its.title for its in likely)} as distributed: {commands} reads it."


def _tables(folder: Path) -> str:
    tables = [entry for entry in _entries(folder) if entry.suffix.lower() in _TABLES and entry.is_file()]
    if not tables:
        return ""
    return f"`{_command('from-csv', tables[0], folder)}` makes data of {tables[0].name}."


def _pictures(folder: Path) -> str:
    """Pictures with texts beside them, or in one folder per class (perhaps below folders of splits)."""
    top = _entries(folder)
    below = [inner for entry in top if entry.is_dir() for inner in _entries(entry)]
    deeper = [inner for entry in below[:_ENTRIES] if entry.is_dir() for inner in _entries(entry)]
    if any(_is_picture(entry) and any(entry.with_suffix(end).is_file() for end in _TEXTS) for entry in (*top, *below)):
        return f"`{_command('from-folder', folder, folder)}` makes captions of the texts beside its pictures."
    if any(map(_is_picture, (*below, *deeper))):
        command = _command("from-folder", folder, folder, "--question", "What is it?")
        return f"If its pictures lie in one folder per class, `{command}` makes data of it."
    if any(map(_is_picture, top)):
        return "It holds pictures and no texts: write a train.jsonl or a table beside them that says something of each."
    return ""


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _entries(folder: Path) -> list[Path]:
    """The first entries of a folder, sorted; none of one that cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry, _ in zip(entries, range(_ENTRIES), strict=False)]
    except OSError:
        return []
    return sorted(path for path in found if not path.name.startswith("."))


def _command(name: str, source: Path, destination: Path, *more: str) -> str:
    return shlex.join(["padapter", "data", name, str(source), str(destination), *more])
