"""Data specs ``NAME:FOLDER[:SPLIT]``: finding the files of a benchmark in a folder, and saying which are missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from padapter.data.benchmarks import BENCHMARKS
from padapter.data.benchmarks.base import Benchmark, Form, PictureIndex, Reading, Split
from padapter.data.source import Source
from padapter.data.stores import FolderImages
from padapter.errors import UserError

#: How many folders a message lists in which pictures were looked for.
_PLACES = 4


@dataclass(frozen=True)
class BenchmarkSpec:
    """What a spec of a benchmark says.

    Attributes:
        spec: The spec.
        benchmark: The benchmark.
        root: Its folder.
        split: The split, if the spec names one.
    """

    spec: str
    benchmark: Benchmark
    root: Path
    split: str | None


def parse_spec(spec: str) -> BenchmarkSpec:
    """Take ``NAME:FOLDER[:SPLIT]`` apart.

    Raises:
        UserError: No folder is named, or there is none of that name.
    """
    name, _, rest = spec.partition(":")
    benchmark = BENCHMARKS[name]
    if not rest.strip():
        raise UserError(f"{spec}: name the folder of {benchmark.title} too: {name}:FOLDER or {name}:FOLDER:SPLIT.")
    root, split = Path(rest).expanduser(), None
    before, colon, after = rest.rpartition(":")
    # A folder may have a colon in its name; what exists as written is a folder.
    if colon and not root.exists() and before and "/" not in after:
        root, split = Path(before).expanduser(), after
    if not root.is_dir():
        found = "is a file, not a folder" if root.is_file() else "there is no such folder"
        raise UserError(f"{spec}: {root}: {found}. It should hold {benchmark.title} as it is distributed.")
    return BenchmarkSpec(spec, benchmark, root, benchmark.split(split).name if split else None)


class BenchmarkScheme:
    """The specs of all benchmarks; see :class:`padapter.data.schemes.Scheme`."""

    def open(self, spec: str, task: str, split: str, seed: int) -> Source:
        """Read a split."""
        found = parse_spec(spec)
        benchmark = found.benchmark
        if task and task != benchmark.task:
            raise UserError(f"{spec}: {benchmark.title} is for the task {benchmark.task!r}, not {task!r}.")
        return _open(found, benchmark.split(found.split or split))

    def names_its_split(self, spec: str) -> bool:
        """Whether the spec has a third part."""
        try:
            return parse_spec(spec).split is not None
        except UserError:
            return False

    def canonical(self, spec: str, split: str) -> str:
        """The benchmark's own name for the split."""
        return BENCHMARKS[spec.partition(":")[0]].split(split).name

    def splits(self, spec: str) -> list[str] | None:
        """Splits whose files are there; None where the spec names one."""
        found = parse_spec(spec)
        if found.split is not None:
            return None
        return [split.name for split in found.benchmark.splits if _complete(found.root, split) is not None] or None

    def task(self, spec: str) -> str:
        """The benchmark's task."""
        return parse_spec(spec).benchmark.task

    def remarks(self, spec: str) -> list[str]:
        """Which splits cannot be read, for want of which files, and where these are found."""
        found = parse_spec(spec)
        if found.split is not None:
            return []
        absent = [split for split in found.benchmark.splits if _complete(found.root, split) is None]
        return [f"{split.name}: not here; {_missing(found.root, split)}" for split in absent]


def overlap(train: tuple[str, str], scored: tuple[str, str]) -> str | None:
    """What is wrong with scoring on one split what was trained on another: they share pictures by construction.

    Args:
        train: Name and split of the training data, as :class:`padapter.data.LoadedData` has them.
        scored: The same of the data that are scored.

    Returns:
        A sentence, or None if nothing is known to be wrong. Only splits of one benchmark are compared, by name.
    """
    benchmark = BENCHMARKS.get(train[0]) if train[0] == scored[0] else None
    if benchmark is None:
        return None
    try:
        trained, asked = benchmark.split(train[1]), benchmark.split(scored[1])
    except UserError:  # a folder of somebody's own that has the benchmark's name
        return None
    if trained is asked:
        what = "is the split that was trained on"
    elif trained.parts & asked.parts:
        what = f"shares pictures with {trained.name}, the split that was trained on"
    else:
        return None
    return f"{asked.name} of {benchmark.title} {what}: scores on it say nothing about new pictures"


def _open(found: BenchmarkSpec, split: Split) -> Source:
    benchmark, root = found.benchmark, found.root
    complete = _complete(root, split)
    if complete is None:
        there = BenchmarkScheme().splits(f"{benchmark.name}:{root}")
        has = f" The folder has: {', '.join(there)}." if there else ""
        raise UserError(f"{found.spec}: the split {split.name!r} is not complete: {_missing(root, split)}.{has}")
    form, files = complete
    pictures = PictureIndex(root, split.pictures)
    if not len(pictures):
        places = [f"{name}/" if name else "the folder itself" for name in split.pictures.folders]
        more = f" and {len(places) - _PLACES} other places" if len(places) > _PLACES else ""
        raise UserError(
            f"{found.spec}: no picture of the split {split.name!r} is there: looked in {', '.join(places[:_PLACES])}"
            f"{more}. Officially found at {split.pictures.page}."
        )
    reading = Reading(root, files, pictures)
    form.read(reading)
    rows = len(reading.rows) + sum(reading.left_out.values())
    notes = [f"read from {form.kind} files: {', '.join(path.name for path in files.values())}", *reading.notes]
    if split.rows is not None and rows != split.rows:
        notes.append(f"the published split has {split.rows:,} rows, this has {rows:,}")
    return Source(
        benchmark.name,
        split.name,
        str(next(iter(files.values()))),
        reading.rows,
        FolderImages(root),
        rule=benchmark.rule,
        unit="record",
        left_out=dict(reading.left_out),
        notes=tuple(notes),
        official=True,
        found_at=" and ".join([split.pictures.page, *reading.pages]),
        unanswered=None if split.answered else _unanswered(benchmark, split),
    )


def _unanswered(benchmark: Benchmark, split: Split) -> str:
    answered = ", ".join(other.name for other in benchmark.splits if other.answered)
    return (
        f"the answers of {benchmark.title} {split.name} are not public, so that there is nothing to train on or to "
        f"score against. `padapter predict` works; predictions are scored by the server ({benchmark.page}). "
        f"Splits with answers: {answered}"
    )


def _complete(root: Path, split: Split) -> tuple[Form, dict[str, Path]] | None:
    """The first form whose files are all there."""
    for form in split.forms:
        files = {name: path for name, path in form.find(root).items() if path is not None}
        if len(files) == len(form.files):
            return form, files
    return None


def _missing(root: Path, split: Split) -> str:
    """Which files would make a split complete, for each of its forms, and on which pages they are."""
    told = []
    for form in split.forms:
        pages: dict[str, list[str]] = {}
        for name, path in form.find(root).items():
            if path is None:
                pages.setdefault(form.files[name].page, []).append(form.files[name].name)
        told.append(" and ".join(f"{', '.join(names)} ({page})" for page, names in pages.items()))
    return f"missing {', or instead '.join(told)}"
