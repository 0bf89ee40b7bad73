"""Turn published files into the documented format: a folder of images with train/validation/test JSON lines.

Each converter is one function ``(source, destination) -> Conversion``. Images are hard-linked into
``destination/images`` where the file system allows it and copied otherwise, so that the result is complete in
itself and can be moved; nothing in ``source`` changes.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from padapter.data.readers import read_rows
from padapter.errors import UserError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Conversion:
    """What a converter did.

    Attributes:
        task: The task that the result is for.
        destination: Where it lies.
        rows: Rows written per split.
        left_out: Rows left out, by reason.
    """

    task: str
    destination: Path
    rows: dict[str, int]
    left_out: dict[str, int] = field(default_factory=dict)

    def format(self) -> str:
        """One line per split and per reason."""
        lines = [f"{self.destination}: data for the task {self.task}"]
        lines += [f"  {split}: {rows} rows" for split, rows in self.rows.items()]
        lines += [f"  left out: {count} ({reason})" for reason, count in self.left_out.items()]
        return "\n".join(lines)


def convert_vqa_rad(source: Path, destination: Path) -> Conversion:
    """VQA-RAD (https://osf.io/89kps): questions of clinicians on radiology images, one answer each.

    Test rows are those whose ``phrase_type`` begins with ``test_``; all others are training rows (there is no
    validation split, and many images occur in both). ``NULL`` counts as no value.

    Args:
        source: The release folder, or the JSON file in it.
        destination: A folder for the result, new or without split files.
    """
    file = _only_file(source, "*VQA*RAD*.json")
    folders = [file.parent, *sorted(path for path in file.parent.iterdir() if path.is_dir())]
    writer = _Writer("vqa", destination)
    for row in _rows(file):
        fields = {name: _no_null(value) for name, value in row.items()}
        writer.add(
            "test" if str(fields.get("phrase_type") or "").startswith("test") else "train",
            _find_image(folders, str(fields.get("image_name") or "")),
            {
                "id": _text(fields.get("qid")),
                "question": fields.get("question"),
                "answers": [_text(fields.get("answer"))],
                "question_type": fields.get("question_type"),
                "answer_type": fields.get("answer_type"),
            },
        )
    return writer.finish()


def convert_nlvr(source: Path, destination: Path) -> Conversion:
    """Cornell NLVR (https://lil.nlp.cornell.edu/nlvr/): statements that are true or false of an image.

    Identifiers are ``n-m``; rows of the same n were shown together and share their sentence, so the split goes by n:
    test if n is divisible by 5, validation if n leaves 1, training otherwise. Of the six renderings of an example
    the first is taken.

    Args:
        source: The folder of one published part, or its JSON file (``dev.json``, ``train.json``), with ``images/``.
        destination: A folder for the result, new or without split files.
    """
    file = _only_file(source, "*.json")
    writer = _Writer("entailment", destination)
    for row in _rows(file):
        identifier, directory = str(row.get("identifier", "")), str(row.get("directory", ""))
        group = identifier.partition("-")[0]
        if not group.isdigit():
            raise UserError(f"{file}: not an NLVR file: identifier {identifier!r} is not of the form n-m.")
        image = _find_image([file.parent / "images" / PurePath(directory).name], f"{file.stem}-{identifier}-0.png")
        label = _text(row.get("label"))
        content = {"id": identifier, "hypothesis": row.get("sentence"), "label": label.lower() if label else None}
        writer.add(_split_by_number(int(group)), image, content)
    return writer.finish()


def convert_coco_captions(source: Path, destination: Path) -> Conversion:
    """Captions in the COCO layout (``images`` and ``annotations`` in one JSON file), one row per image.

    A file with ``train`` or ``val`` in its name is that split; any other is split by the CRC-32 of the image id as
    text: test if that is divisible by 5, validation if it leaves 1, training otherwise.

    Args:
        source: The JSON file, or a folder with exactly one; images lie beside it or in folders beside it.
        destination: A folder for the result, new or without split files.
    """
    file = _only_file(source, "*caption*.json")
    content = _json(file)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise UserError(f"{file}: not in the COCO layout: expected one object with 'images' and 'annotations'.")
    captions: dict[str, list[Any]] = {}
    for annotation in content["annotations"]:
        captions.setdefault(str(annotation.get("image_id")), []).append(annotation.get("caption"))
    split = next((name for word, name in (("train", "train"), ("val", "validation")) if word in file.stem), None)
    folders = [file.parent, *sorted(path for path in file.parent.iterdir() if path.is_dir())]
    writer = _Writer("caption", destination)
    for image in sorted(content["images"], key=lambda image: str(image.get("id"))):
        key = str(image.get("id"))
        row = {"id": key, "captions": captions.get(key), "source": image.get("flickr_url")}
        path = _find_image(folders, str(image.get("file_name", "")))
        writer.add(split or _split_by_number(zlib.crc32(key.encode())), path, row)
    return writer.finish()


Converter = Callable[[Path, Path], Conversion]

#: Converters by name.
CONVERTERS: dict[str, Converter] = {
    "vqa-rad": convert_vqa_rad,
    "nlvr": convert_nlvr,
    "coco-captions": convert_coco_captions,
}


class _Writer:
    """Collects rows per split, links their images, and writes everything at the end."""

    def __init__(self, task: str, destination: Path) -> None:
        self.task = task
        self.destination = Path(destination).expanduser()
        self.rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self.left_out: Counter[str] = Counter()
        self.images: dict[Path, str] = {}
        taken = [f"{split}.jsonl" for split in SPLITS if (self.destination / f"{split}.jsonl").exists()]
        if taken:
            raise UserError(f"{destination}: holds {', '.join(taken)} already; give a new folder.")

    def add(self, split: str, image: Path | None, row: dict[str, Any]) -> None:
        """Take one row; one that lacks its image or a required value is counted instead."""
        required = [value for name, value in row.items() if name not in {"question_type", "answer_type", "source"}]
        if image is None:
            self.left_out["image not found"] += 1
        elif any(value in (None, "", [], [None]) for value in required):
            self.left_out["a value is missing"] += 1
        else:
            row = {name: value for name, value in row.items() if value is not None}
            self.rows[split].append({"image": self._name(image), **row})

    def finish(self) -> Conversion:
        """Write the folder."""
        if not any(self.rows.values()):
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.left_out.items())
            raise UserError(
                f"{self.destination}: nothing to write: no usable row ({reasons or 'the source is empty'})."
            )
        (self.destination / "images").mkdir(parents=True, exist_ok=True)
        for source, name in self.images.items():
            _link_or_copy(source, self.destination / name)
        for split, rows in self.rows.items():
            if rows:
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                (self.destination / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        counts = {split: len(rows) for split, rows in self.rows.items() if rows}
        return Conversion(self.task, self.destination, counts, dict(self.left_out))

    def _name(self, image: Path) -> str:
        if image not in self.images:
            name = f"images/{image.name}"
            if name in self.images.values():
                raise UserError(f"{image}: another image of the same name is in use; names must differ.")
            self.images[image] = name
        return self.images[image]


def _link_or_copy(source: Path, destination: Path) -> None:
    destination.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), destination)
    except OSError:  # another file system, or links are not allowed
        shutil.copyfile(source, destination)


def _find_image(folders: list[Path], name: str) -> Path | None:
    """The image of that plain file name in one of the folders."""
    if not name or PurePath(name).name != name:
        return None
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _split_by_number(number: int) -> str:
    return {0: "test", 1: "validation"}.get(number % 5, "train")


def _only_file(source: Path, pattern: str) -> Path:
    source = Path(source).expanduser()
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"{source}: no such file or folder.")
    found = sorted(source.glob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{source}: expected one file {pattern}, found {names}; name the file itself.")
    return found[0]


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for row in read_rows(file):
        if row.values is None:
            raise UserError(f"{file}, line {row.line}: {row.error}.")
        yield row.values


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}).") from error


def _no_null(value: Any) -> Any:
    """Strip texts; the text NULL is no value."""
    if not isinstance(value, str):
        return value
    stripped = value.strip()
    return None if stripped in {"", "NULL"} else stripped


def _text(value: Any) -> str | None:
    return None if value is None else str(value).strip() or None
