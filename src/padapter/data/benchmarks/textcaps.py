"""TextCaps: captions that have to read the text in a picture of Open Images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from padapter.data.benchmarks.base import Benchmark, Form, Needed, Pictures, Reading, Split, stem_key
from padapter.data.records import members

PAGE = "https://textvqa.org/textcaps/dataset/"


@dataclass
class _Image:
    """What the records of one picture say."""

    number: int
    captions: list[Any] = field(default_factory=list)
    references: list[Any] = field(default_factory=list)


def read_official(folder: str, reading: Reading) -> None:
    """``{data: [...]}``, one record per caption, each with all references of its picture; one row per picture."""
    path = reading.files["captions"]
    images: dict[str, _Image] = {}
    for _, number, record in members(path, "data"):
        key = record.get("image_id")
        # A hexadecimal text: "0123" and 123 are different pictures, so that a number has lost something.
        if not isinstance(key, str) or not key:
            reading.rows.add_bad(str(path), number, f"image_id is {key!r}, not a hexadecimal text")
            continue
        image = images.setdefault(key, _Image(number))
        if record.get("caption_str") is not None:
            image.captions.append(record["caption_str"])
        references = record.get("reference_strs")
        if not image.references and isinstance(references, list):
            image.references = references
    for key, image in images.items():
        image_path = reading.pictures.find(f"{folder}/{key}.jpg")
        # A file that was cut down to one record per picture still has all references.
        texts = image.references if len(image.references) > len(image.captions) else image.captions
        reading.rows.add(str(path), image.number, id=key, image=image_path, captions=texts or None)


def _split(name: str, rows: int, folder: str, *, answered: bool = True) -> Split:
    files = {"captions": Needed(f"TextCaps_0.1_{name}.json", PAGE)}
    form = Form("official", files, lambda reading: read_official(folder, reading))
    pictures = Pictures((folder, f"images/{folder}", "images", ""), PAGE, stem_key)
    return Split(name, (form,), pictures, rows=rows, answered=answered)


TEXTCAPS = Benchmark(
    "textcaps",
    "TextCaps",
    "caption",
    (
        # Pictures of the validation split lie among those of the training split.
        _split("train", 21_953, "train_images"),
        _split("val", 3_166, "train_images"),
        _split("test", 3_289, "test_images", answered=False),
    ),
    page="https://textvqa.org/textcaps/",
)
