"""From what an importer read to a folder that training reads: check, split, link, write."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padapter.data import ImageError, Picture, check_data, verify_image
from padapter.data.schema import Field, parse_row
from padapter.data.sources import split_files
from padapter.errors import UserError
from padapter.importers.base import SPLITS, FoundRow, Imported, ImportOptions, Reading, SplitOptions
from padapter.importers.pictures import LookupProblem
from padapter.importers.splitting import split_rows
from padapter.tasks import get_task


@dataclass
class _Row:
    """A row that will be written."""

    found: FoundRow
    picture: Path
    values: dict[str, Any]


def check_destination(reading: Reading, options: ImportOptions) -> None:
    """Refuse a destination that holds something else, before a picture is opened.

    Raises:
        UserError: It is a file, or holds split files.
    """
    folder = Path(options.destination).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"DST: {folder} is a file; give a folder.")
    for split in _splits_written(reading):
        for file in split_files(folder, split):
            ours = file == folder / f"{split}.jsonl"
            if ours and not options.overwrite:
                raise UserError(f"DST: {folder} holds {file.name} already; give a new folder, or --overwrite.")
            if not ours:
                raise UserError(
                    f"DST: {file} would be a second file for the split {split!r}; give another folder, or move it."
                )


def write(reading: Reading, options: ImportOptions) -> Imported:
    """Write the rows that can be used, with their pictures, and check the result.

    A picture inside the destination stays where it is; any other is hard-linked into ``images``, or copied where that
    is impossible. Nothing in the source changes.

    Raises:
        UserError: No row can be used, a picture's place is taken, or the destination cannot be written.
    """
    folder = Path(options.destination).expanduser()
    rows = _usable(reading)
    if not rows:
        found = "\n".join(reading.left_out.lines("left out")) or "  the source is empty"
        raise UserError(f"{options.source}: nothing to write, since no row can be used:\n{found}")
    digests = {path: Picture(path).digest.hex() for path in dict.fromkeys(row.picture for row in rows)}
    splits = _choose_splits(rows, digests, reading, options)
    _note_twins(rows, splits, digests, reading)
    names = _names(list(digests), folder)
    try:
        _place_all({path: folder / name for path, name in names.items()}, overwrite=options.overwrite)
        written = _write_splits(rows, splits, names, folder, reading)
    except OSError as problem:
        raise UserError(f"DST: {folder} cannot be written ({problem})") from problem
    pictures = {
        split: {row.picture for row, its in zip(rows, splits, strict=True) if its == split} for split in written
    }
    report = check_data(str(folder), get_task(reading.task), decode=False)
    return Imported(
        reading.task,
        folder,
        reading.source,
        written,
        {split: len(paths) for split, paths in pictures.items()},
        reading.left_out,
        reading.fixed,
        reading.notes,
        report,
    )


def _usable(reading: Reading) -> list[_Row]:
    """Rows with a picture that can be decoded and values that the task can use; the others are counted."""
    fields = get_task(reading.task).fields
    faults: dict[Path, str | None] = {}
    rows = []
    for found in reading.rows:
        values = _values(found, fields, reading)
        picture = _picture(found, faults, reading) if values is not None else None
        if values is not None and picture is not None:
            rows.append(_Row(found, picture, values))
    if reading.task == "caption":
        rows = _one_per_picture(rows, reading)
    rows = _distinct_ids(rows, reading)
    contents = {(str(row.picture), json.dumps(row.values, sort_keys=True)) for row in rows}
    if len(contents) < len(rows):
        reading.notes.append(f"{len(rows) - len(contents)} rows repeat another one exactly, and are kept")
    return rows


def _values(found: FoundRow, fields: tuple[Field, ...], reading: Reading) -> dict[str, Any] | None:
    parsed = parse_row(found.values, fields)
    for name, message in parsed.problems:
        reading.left_out.add(f"{name} cannot be used", f"{found.where}: {name}: {message}")
        return None
    if parsed.dropped:
        reading.left_out.add(parsed.dropped, found.where)
        return None
    for note in parsed.notes:
        reading.fixed.add(note, found.where)
    for field in fields:
        if _was_cleaned(field.find(found.values), parsed.values.get(field.name)):
            reading.fixed.add(f"{field.name} cleaned: white space, line breaks, numbers as text, case of labels")
    values = {name: value for name, value in parsed.values.items() if value is not None}
    return values if parsed.id is None else {"id": parsed.id, **values}


def _was_cleaned(raw: Any, clean: Any) -> bool:
    """Whether a value was changed; entries that were left out of a list have a note of their own."""
    if clean is None or (isinstance(raw, list) and len(raw) != len(clean)):
        return False
    return bool(raw != (clean[0] if isinstance(clean, list) and not isinstance(raw, list) else clean))


def _picture(found: FoundRow, faults: dict[Path, str | None], reading: Reading) -> Path | None:
    try:
        path, fixed = reading.pictures.find(found.image)
    except LookupProblem as problem:
        reading.left_out.add(problem.reason, f"{found.where}: {problem.detail}")
        return None
    if path not in faults:
        try:
            verify_image(path, decode=True)
            faults[path] = None
        except ImageError as problem:
            faults[path] = str(problem)
    if faults[path] is not None:
        reading.left_out.add("the picture cannot be opened", f"{found.where}: {faults[path]}")
        return None
    if fixed is not None:
        reading.fixed.add(fixed, f"{found.where}: {found.image} is {path}")
    return path


def _one_per_picture(rows: list[_Row], reading: Reading) -> list[_Row]:
    """Captions of the same picture in one row: that is how they are scored."""
    merged: dict[tuple[Path, str | None], _Row] = {}
    for row in rows:
        first = merged.setdefault((row.picture, row.found.split), row)
        if first is not row:
            if first.values.get("weight") != row.values.get("weight"):
                reading.fixed.add("captions of one picture have several weights: the first counts", row.found.where)
            first.values["captions"] = [*first.values["captions"], *row.values["captions"]]
    if len(merged) < len(rows):
        reading.notes.append(
            f"{len(rows)} rows show {len(merged)} pictures: one row per picture, with all its captions"
        )
    return list(merged.values())


def _distinct_ids(rows: list[_Row], reading: Reading) -> list[_Row]:
    """Rows whose ids differ: an exact repeat is left out, another content under a used id gets an id of its own."""
    used = {row.values["id"] for row in rows if "id" in row.values}
    first: dict[str, _Row] = {}
    kept = []
    for row in rows:
        name = row.values.get("id")
        if name is not None and name in first:
            if (first[name].picture, first[name].values) == (row.picture, row.values):
                reading.left_out.add("an exact repeat of an earlier row", row.found.where)
                continue
            number = 2
            while f"{name}-{number}" in used:
                number += 1
            row.values["id"] = f"{name}-{number}"
            used.add(row.values["id"])
            reading.fixed.add("the id was in use and got a number behind it", f"{row.found.where}: {name}")
        first.setdefault(row.values.get("id", ""), row)
        kept.append(row)
    return kept


def _choose_splits(rows: list[_Row], digests: dict[Path, str], reading: Reading, options: ImportOptions) -> list[str]:
    given = [row.found.split for row in rows]
    if reading.split is not None:
        return [reading.split] * len(rows)
    if all(split is not None for split in given) or not isinstance(options, SplitOptions):
        return [split or "train" for split in given]
    keys = [(digests[row.picture], *([f"group {row.found.group}"] if row.found.group else [])) for row in rows]
    splits = split_rows(keys, options.shares, options.seed)
    if set(splits) == {"train"} and any(options.shares.values()):
        reading.notes.append("too few pictures to set some aside: everything is training data")
    return splits


def _note_twins(rows: list[_Row], splits: list[str], digests: dict[Path, str], reading: Reading) -> None:
    """Say which pictures have the same bytes, and which stand on two sides (only a source's own splits do that)."""
    paths: dict[str, list[Path]] = defaultdict(list)
    for path, digest in digests.items():
        paths[digest].append(path)
    twins = [same for same in paths.values() if len(same) > 1]
    sides: dict[str, set[str]] = defaultdict(set)
    for row, split in zip(rows, splits, strict=True):
        sides[digests[row.picture]].add(split)
    shared = sum(len(found) > 1 for found in sides.values())
    if twins:
        kept = "" if shared else "; each stays on one side"
        some = " = ".join(path.name for path in twins[0])
        reading.notes.append(
            f"{sum(map(len, twins))} files are {len(twins)} pictures under several names (the same bytes){kept}: {some}"
        )
    if shared:
        reading.notes.append(
            f"{shared} pictures stand in more than one split, as the source has it: "
            "scores on them say little about new pictures"
        )


def _names(paths: list[Path], folder: Path) -> dict[Path, str]:
    """What the rows call each picture: its place in ``folder``, or a place below ``images`` made for it."""
    top = Path(os.path.abspath(folder))
    places = {path: Path(os.path.abspath(path)) for path in paths}
    inside = {path: place.relative_to(top).as_posix() for path, place in places.items() if place.is_relative_to(top)}
    names = {path: name for path, name in inside.items() if "\\" not in name and name[1:2] != ":"}
    others = [path for path in paths if path not in names]
    if others:
        base = os.path.commonpath([places[path].parent for path in others])
        for path in others:
            name = places[path].relative_to(base).as_posix().replace("\\", "_")
            names[path] = f"images/{name}"
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated:
        first, second = (path for path in paths if names[path] == repeated[0])
        raise UserError(f"{first} and {second} would both become {repeated[0]}; rename one of them.")
    return names


def _place_all(targets: dict[Path, Path], *, overwrite: bool) -> None:
    """Put every picture into its place; nothing is touched if some place is taken by another file."""
    missing = [(source, target) for source, target in targets.items() if not _is_there(source, target)]
    taken = [target for _, target in missing if os.path.lexists(target)]
    if taken and not overwrite:
        raise UserError(f"DST: {taken[0]} is another picture already; give a new folder, or --overwrite.")
    for source, target in missing:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        partial.unlink(missing_ok=True)
        try:
            os.link(source.resolve(), partial)
        except OSError:  # another file system, or links are not allowed
            shutil.copyfile(source, partial)
        os.replace(partial, target)


def _is_there(source: Path, target: Path) -> bool:
    if not target.is_file():
        return False
    return os.path.samefile(source, target) or Picture(source).digest == Picture(target).digest


def _write_splits(
    rows: list[_Row], splits: list[str], names: dict[Path, str], folder: Path, reading: Reading
) -> dict[str, int]:
    """Write the split files, each at once; with ``overwrite`` those of an earlier conversion go. Returns rows each."""
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    for row, split in zip(rows, splits, strict=True):
        record = {"image": names[row.picture], **row.values, **row.found.extra}
        lines[split].append(json.dumps(record, ensure_ascii=False) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    for split in _splits_written(reading):
        target = folder / f"{split}.jsonl"
        if lines[split]:
            partial = folder / f".{split}.jsonl.partial"
            partial.write_text("".join(lines[split]), encoding="utf-8", newline="\n")
            os.replace(partial, target)
        else:
            target.unlink(missing_ok=True)
    return {split: len(texts) for split, texts in lines.items() if texts}


def _splits_written(reading: Reading) -> tuple[str, ...]:
    return SPLITS if reading.split is None else (reading.split,)
