"""Pack a data set into tar files in the WebDataset layout: pictures and their rows side by side."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from padapter.data.check import DataTask, examine
from padapter.data.examples import Examples
from padapter.data.images import IMAGE_SUFFIXES, image_format
from padapter.data.load import fingerprint, refusal
from padapter.data.schema import asked_fields
from padapter.data.shards.index import Header, Index, Place, Shard, index_file, lines_of, read_index
from padapter.data.sources import available_splits, open_source
from padapter.data.stores import ImageStore
from padapter.errors import UserError

MEGABYTE = 1_000_000
DEFAULT_MEGABYTES = 1000


@dataclass(frozen=True)
class Sharded:
    """What was written for one split.

    Attributes:
        header: Of its index.
        index: The index.
    """

    header: Header
    index: Path

    def format(self) -> str:
        """One line."""
        header = self.header
        size = sum(shard.size for shard in header.shards) / MEGABYTE
        return (
            f"{self.index}: {header.rows:,} rows, {header.images:,} images, {len(header.shards)} shards, "
            f"{size:,.1f} MB, fingerprint {header.fingerprint}"
        )


def write_shards(
    spec: str,
    destination: Path,
    task: DataTask,
    *,
    split: str | None = None,
    megabytes: int = DEFAULT_MEGABYTES,
    skip_bad_rows: bool = False,
    overwrite: bool = False,
) -> list[Sharded]:
    """Pack splits of a data set. Every picture is decoded once before, so that no damaged one is packed.

    Encoded pictures are copied as they are. A picture that several rows name is packed once, with all its rows.

    Args:
        spec: The data (see ``docs/data.md``).
        destination: A folder; shards are ``SPLIT-000000.tar`` and so on, the index is ``SPLIT.shards.jsonl``.
        task: The task they are for.
        split: One split, or None for every split.
        megabytes: Size at which a new shard is begun; a larger picture has one of its own.
        skip_bad_rows: Leave out rows with problems instead of refusing the data.
        overwrite: Replace a split that was packed into the folder before, when the new one is complete.

    Returns:
        What was written, one for each split.

    Raises:
        UserError: Bad rows, an index or shards of a split that are there already, or the destination cannot be written.
    """
    if megabytes < 1:
        raise UserError(f"--size: a shard has at least 1 megabyte; got {megabytes}.")
    found = available_splits(spec) if split is None else None
    return [
        _write(spec, destination, task, name, megabytes, skip_bad_rows, overwrite)
        for name in found or [split or "train"]
    ]


def _write(
    spec: str, folder: Path, task: DataTask, split: str, megabytes: int, skip_bad_rows: bool, overwrite: bool
) -> Sharded:
    source = open_source(spec, task.name, split=split)
    path = index_file(folder, source.split)
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists already; give another folder, or --overwrite to replace the split.")
    old = [shard.file for shard in read_index(path).header.shards] if path.exists() else []
    _refuse_shards(folder, source.split, old)
    fields = asked_fields(task.fields) if source.unanswered else task.fields
    report, examples = examine(source, fields, decode=True)
    if report.problems and (not skip_bad_rows or not examples or any(problem.fatal for problem in report.problems)):
        raise UserError(refusal(spec, task, report, skippable=bool(examples)))
    if not examples:
        raise UserError(f"{spec}: none of the {report.rows} rows can be used.\n{report.format()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The new ones are packed beside the old ones, which may be what they are made of.
        work = folder / f".{source.split}.new" if old else folder
        work.mkdir(exist_ok=True)
        shards, places = _pack(source.images, examples, work, source.split, megabytes * MEGABYTE)
        header = Header(
            source.name,
            source.split,
            task.name,
            rows=len(examples),
            images=len(places),
            fingerprint=fingerprint(source, task.name, examples),
            shards=shards,
            rule=source.rule,
            official=source.official,
            unanswered=source.unanswered,
            left_out=report.dropped + report.bad,
        )
        rows = [{"id": key, "image": image, **_given(values)} for key, image, values in examples.records()]
        partial = path.with_name(path.name + ".partial")
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(lines_of(Index(header, places, rows)))
        if old:
            _exchange(path, old, work, [shard.file for shard in shards])
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}).") from error
    return Sharded(header, path)


def _exchange(index: Path, old: Sequence[str], work: Path, new: Sequence[str]) -> None:
    """Take old shards away and put new ones in their place; the index goes first, so that it never lies."""
    index.unlink()
    for name in old:
        (index.parent / name).unlink(missing_ok=True)
    for name in new:
        (work / name).replace(index.parent / name)
    work.rmdir()


def _refuse_shards(folder: Path, split: str, own: Sequence[str]) -> None:
    """Tar files with the names of shards that stand in no index may be anybody's: they are not written over."""
    shard = re.compile(re.escape(split) + r"-\d{6,}\.tar")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    there = sorted(name for name in names if shard.fullmatch(name) and name not in own)
    if there:
        more = f", ... ({len(there)} in all)" if len(there) > 5 else ""
        raise UserError(
            f"{folder}: has {', '.join(there[:5])}{more} already, without the index {index_file(folder, split).name}: "
            "files of somebody else, or of a run that was interrupted. Give another folder, or move or delete them."
        )


def _pack(
    images: ImageStore, examples: Examples, folder: Path, split: str, limit: int
) -> tuple[tuple[Shard, ...], dict[str, Place]]:
    by_image: dict[str, list[int]] = {}
    for number, image in enumerate(examples.images):
        by_image.setdefault(image, []).append(number)
    shards: list[Shard] = []
    places: dict[str, Place] = {}
    samples = _samples(images, examples, by_image)
    sample = next(samples, None)
    while sample is not None:
        file = folder / f"{split}-{len(shards):06d}.tar"
        partial = file.with_name(file.name + ".partial")
        packed = 0
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            while sample is not None and (not packed or tar.offset + len(sample.content) <= limit):
                stem = f"{len(places):09d}"
                offset = _add(tar, f"{stem}.{sample.suffix}", sample.content)
                _add(tar, f"{stem}.json", sample.record)
                stamp = images.stamp(sample.key)
                places[sample.key] = Place(len(shards), offset, len(sample.content), stamp)
                packed += 1
                sample = next(samples, None)
        partial.replace(file)
        shards.append(Shard(file.name, file.stat().st_size, packed))
    return tuple(shards), places


@dataclass(frozen=True)
class _Sample:
    key: str
    suffix: str
    content: bytes
    record: bytes


def _samples(images: ImageStore, examples: Examples, by_image: dict[str, list[int]]) -> Iterator[_Sample]:
    """Pictures in the order in which rows first name them."""
    for key, numbers in by_image.items():
        content = images.read(key)
        rows = []
        for number in numbers:
            values = {name: column[number] for name, column in examples.values.items()}
            rows.append({"n": number, "id": examples.ids[number], **_given(values)})
        record = json.dumps({"image": key, "rows": rows}, ensure_ascii=False).encode()
        yield _Sample(key, _suffix(key, content), content, record)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _suffix(key: str, content: bytes) -> str:
    """The suffix by which WebDataset readers know a picture: that of its file, or of its format."""
    suffix = PurePosixPath(key).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return suffix[1:]
    kind = image_format(content, key)
    return {"jpeg": "jpg", "mpo": "jpg"}.get(kind, kind)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a file with nothing of this machine in its header; the offset of its first byte."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    before = tar.offset
    tar.addfile(info, io.BytesIO(content))
    return before + len(info.tobuf(tar.format or tarfile.USTAR_FORMAT))
