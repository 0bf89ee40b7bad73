"""Read shards: a folder with an index, or any tar files in the WebDataset layout."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padapter.data.columns import ColumnRows
from padapter.data.images import IMAGE_SUFFIXES, ImageError, open_file, read_file, sliced, verify_image
from padapter.data.schema import FieldError, describe
from padapter.data.shards.index import Header, Index, Place, index_file, indexed_splits, read_header, read_index
from padapter.data.source import Source
from padapter.data.stores import stamp_of, with_paths
from padapter.errors import UserError

if TYPE_CHECKING:
    import datasets

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass
class ShardImages:
    """Pictures inside of tar files, each read by its place: nothing is unpacked, and any order will do.

    Attributes:
        tars: The tar files, by number; None for those that are not at hand.
        places: Of the pictures, by key.
        packed: They were decoded when they were packed, and the files have the sizes that they had then.
    """

    tars: Sequence[Path | None]
    places: Mapping[str, Place]
    packed: bool = False

    @property
    def place(self) -> str:
        """The first tar file, resolved."""
        return str(next(tar for tar in self.tars if tar is not None).resolve())

    def locate(self, value: Any) -> str:
        """The key, which is what ``value`` is."""
        if not isinstance(value, str) or not value:
            raise FieldError(f"is {describe(value)}; expected the name of an image")
        if value not in self.places:
            raise ImageError(f"{value}: image not found in the shards.")
        return value

    def verify(self, key: str, *, decode: bool) -> None:
        """Open the picture, unless that was done when it was packed."""
        if decode or not self.packed:
            verify_image(self._path(key), decode=decode)

    def stamp(self, key: str) -> str:
        """What it was in the source; where that is not known, as of a file."""
        place = self.places[key]
        if place.stamp is not None:
            return place.stamp
        with open_file(Path(self._path(key))) as handle:
            return stamp_of(handle, place.size)

    def read(self, key: str) -> bytes:
        """The encoded picture."""
        return read_file(Path(self._path(key)))

    def attach(self, table: datasets.Dataset, keys: Sequence[str]) -> datasets.Dataset:
        """Add a column of places in tar files; they are read when a row is used."""
        return with_paths(table, [self._path(key) for key in keys])

    def unreferenced(self, keys: set[str]) -> list[str]:
        """None: what is packed is named by a row."""
        return []

    def remember(self) -> None:
        """Nothing: the index has the stamps."""

    def _path(self, key: str) -> str:
        place = self.places[key]
        return sliced(str(self.tars[place.shard]), place.offset, place.size)


def open_folder(folder: Path, split: str) -> Source:
    """A split of a folder that :func:`padapter.data.shards.write_shards` wrote.

    Raises:
        UserError: The index is damaged, or shards are missing or have other sizes than it says.
    """
    path = index_file(folder, split)
    shards = read_header(path).shards
    return _indexed(path, {shard.file: folder / shard.file for shard in shards})


def open_tars(spec: str) -> Source:
    """``wds:PATTERN[,PATTERN]``: tar files, by their index if there is one beside any of them.

    A pattern is a path with ``{000..009}``, ``*`` or ``?`` in it.

    Raises:
        UserError: No such files, or not tar files of pictures and JSON.
    """
    tars = expand(spec)
    headers = []
    for folder in dict.fromkeys(tar.parent for tar in tars.values()):
        for split in indexed_splits(folder):
            path = index_file(folder, split)
            header = read_header(path)
            named = {shard.file for shard in header.shards}
            if tars.keys() <= named:
                return _indexed(path, tars)
            if tars.keys() & named:
                headers.append(header)
    return _with_rule(spec, _scanned(spec, list(tars.values())), headers, tars.keys())


def _with_rule(spec: str, source: Source, headers: Sequence[Header], tars: Set[str]) -> Source:
    """Shards of several indexes, read together: what their indexes say of scoring holds where all say the same."""
    without = tars - {shard.file for header in headers for shard in header.shards}
    said = {(header.rule, header.official, header.unanswered) for header in headers}
    if without:
        said.add((None, False, None))
    if len(said) > 1:
        names = ", ".join(f"{header.name} {header.split}" for header in headers)
        more = " and of tar files without an index" if without else ""
        raise UserError(
            f"{spec}: holds shards of {names}{more}, which are not scored by the same rule; read them one by one."
        )
    for rule, official, unanswered in said:
        source = replace(source, rule=rule, official=official, unanswered=unanswered)
    return source


def expand(spec: str) -> dict[str, Path]:
    """The tar files of ``wds:...``, by name.

    Raises:
        UserError: Files are missing, or have the same name.
    """
    found: list[Path] = []
    for pattern in spec.partition(":")[2].split(","):
        for name in _ranges(pattern.strip()):
            path = Path(name).expanduser()
            if any(mark in path.name for mark in "*?"):
                listed = sorted(path.parent.glob(path.name))
                if not listed:
                    raise UserError(f"{spec}: no file fits {name}.")
                found += listed
            else:
                found.append(path)
    missing = [str(path) for path in found if not path.is_file()]
    if missing or not found:
        more = f", ... ({len(missing)} in all)" if len(missing) > 5 else ""
        raise UserError(f"{spec}: no such file: {', '.join(missing[:5])}{more}.")
    names = {path.name: path for path in found}
    if len(names) < len(found):
        raise UserError(
            f"{spec}: several of the files have the same name; shards of one split have names of their own."
        )
    return names


def _ranges(pattern: str) -> list[str]:
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern] if pattern else []
    first, last = found.groups()
    numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [name for number in numbers for name in _ranges(before + number + after)]


def _indexed(path: Path, tars: Mapping[str, Path]) -> Source:
    index = read_index(path)
    header = index.header
    given = [tars.get(shard.file) for shard in header.shards]
    wrong = []
    for tar, shard in zip(given, header.shards, strict=True):
        if tar is not None:
            size = tar.stat().st_size if tar.is_file() else None
            if size != shard.size:
                wrong.append(f"{tar} " + ("is missing" if size is None else f"has {size} of {shard.size} bytes"))
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} of {len(given)} shards are not as they were written: {'; '.join(wrong)}."
        )
    notes = [f"{header.left_out} rows were left out when the shards were written"] if header.left_out else []
    if None in given:
        notes.append(f"{sum(tar is not None for tar in given)} of {len(given)} shards of the split are read")
    return Source(
        header.name,
        header.split,
        str(path),
        _rows(path, index, given),
        ShardImages(given, index.places, packed=True),
        rule=header.rule,
        unit="row",
        notes=tuple(notes),
        official=header.official,
        unanswered=header.unanswered,
    )


def _rows(path: Path, index: Index, given: Sequence[Path | None]) -> ColumnRows:
    rows = ColumnRows()
    for number, row in enumerate(index.rows, 1):
        place = index.places.get(row.get("image", ""))
        if place is None or given[place.shard] is not None:
            rows.add(str(path), number, **row)
    return rows


def _scanned(spec: str, tars: Sequence[Path]) -> Source:
    """Tar files without an index: their headers are walked through."""
    found: list[tuple[Path, str, Place, dict[str, Any]]] = []
    for shard, tar in enumerate(tars):
        for key, members in _samples(tar):
            image = next((member for name, member in members.items() if f".{name}" in IMAGE_SUFFIXES), None)
            texts = {name: member for name, member in members.items() if name in {"json", "txt"}}
            if image is None or not texts:
                continue
            found.append((tar, key, replace(image, shard=shard), _record(tar, key, texts)))
    places: dict[str, Place] = {}
    numbers: Counter[Path] = Counter()
    samples: list[tuple[int | None, Path, int, dict[str, Any]]] = []
    for name, (tar, key, place, record) in zip(_names(found), found, strict=True):
        places[name] = place
        for row in record["rows"] if isinstance(record.get("rows"), list) else [record]:
            numbers[tar] += 1
            values = {field: value for field, value in row.items() if field not in {"n", "image"}}
            samples.append((row.get("n"), tar, numbers[tar], {"id": key, **values, "image": name}))
    if not samples:
        raise UserError(f"{spec}: no picture with a .json or .txt of the same name is in these files.")
    if all(order is not None for order, *_ in samples):
        samples.sort(key=lambda sample: sample[0] or 0)
    rows = ColumnRows()
    for _, tar, number, values in samples:
        rows.add(str(tar), number, **values)
    note = "no one index has all of these tar files: every picture is looked at"
    return Source(tars[0].name, "shards", spec, rows, ShardImages(tars, places), unit="row", notes=(note,))


def _names(found: Sequence[tuple[Path, str, Place, dict[str, Any]]]) -> list[str]:
    """One name for each picture: what its record says, or ``TAR/KEY`` where it says nothing or what others say too."""
    inside = [f"{tar.name}/{key}" for tar, key, _, _ in found]
    given = [str(record.get("image") or place) for place, (*_, record) in zip(inside, found, strict=True)]
    times = Counter(given)
    names = [name if times[name] == 1 else place for name, place in zip(given, inside, strict=True)]
    # A record may give its picture the very ``TAR/KEY`` of another; those of all are distinct.
    return names if len(set(names)) == len(names) else inside


def _samples(tar: Path) -> list[tuple[str, dict[str, Place]]]:
    """Keys of a tar file with their members by suffix: what has the same name up to the first dot."""
    samples: dict[str, dict[str, Place]] = {}
    try:
        with tarfile.open(tar, "r:") as opened:
            for member in opened:
                folder, slash, name = member.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                if member.isfile() and stem and dot:
                    place = Place(0, member.offset_data, member.size)
                    samples.setdefault(f"{folder}{slash}{stem}", {})[suffix.lower()] = place
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{tar}: is not a readable uncompressed tar file ({error}).") from error
    return list(samples.items())


def _record(tar: Path, key: str, texts: Mapping[str, Place]) -> dict[str, Any]:
    """What is said of a picture: an object, or a caption in a text file."""
    suffix = "json" if "json" in texts else "txt"
    with tar.open("rb") as stream:
        stream.seek(texts[suffix].offset)
        content = stream.read(texts[suffix].size)
    try:
        text = content.decode("utf-8")
        record = json.loads(text) if suffix == "json" else {"caption": text}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{tar}: {key}.{suffix} cannot be read ({error}).") from error
    if not isinstance(record, dict):
        raise UserError(f"{tar}: {key}.json is {type(record).__name__}, not an object with named fields.")
    return record
