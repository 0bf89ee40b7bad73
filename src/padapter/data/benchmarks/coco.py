"""COCO Captions: the official releases of 2014 and 2017, and the Karpathy split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from padapter.data.benchmarks.base import Benchmark, Form, Needed, Pictures, Reading, Split, whole_number
from padapter.data.benchmarks.coco_images import (
    IMAGES_PAGE,
    KARPATHY,
    KARPATHY_CELLS,
    LABELLED,
    LABELLED_FOLDERS,
    TRAIN_2014,
    TRAIN_2017,
    VAL_2014,
    VAL_2017,
    coco_id,
    coco_pictures,
    read_karpathy,
)
from padapter.data.records import members, rows

BLIP_PAGE = "https://github.com/salesforce/BLIP (its data lists)"


def read_official(reading: Reading) -> None:
    """``{images, annotations}``; annotations are not sorted by picture, and there are none for test pictures."""
    path = reading.files["captions"]
    captions: dict[int, list[tuple[int, Any]]] = {}
    records: dict[int, tuple[int, Any]] = {}
    for name, number, record in members(path, "images", optional=("annotations",)):
        key = whole_number(record.get("id" if name == "images" else "image_id"))
        if key is None:
            reading.rows.add_bad(str(path), number, f"a record of {name!r} has no whole number as image id")
        elif name == "images":
            records[key] = (number, record.get("file_name"))
        else:
            captions.setdefault(key, []).append((number, record.get("caption")))
    for key, (number, name) in records.items():
        texts = [text for _, text in captions.pop(key, [])] or None
        image = reading.pictures.find(f"{reading.pictures.pictures.folders[0]}/{name}")
        reading.rows.add(str(path), number, id=str(key), image=image, captions=texts)
    for key, entries in captions.items():
        reading.rows.add_bad(
            str(path), entries[0][0], f"{len(entries)} captions are of image {key}, which is not listed"
        )


def read_by_karpathy(split: str) -> Callable[[Reading], None]:
    """A reader of one part of the Karpathy split; ``train`` is with ``restval``."""

    def read(reading: Reading) -> None:
        path = reading.files["karpathy"]
        for number, key, image in read_karpathy(path, split):
            name = f"{image.get('filepath', '')}/{image.get('filename', '')}".lstrip("/")
            texts = [sentence.get("raw") for sentence in image.get("sentences") or []]
            reading.rows.add(str(path), number, id=str(key), image=reading.pictures.find(name), captions=texts)

    return read


def read_blip(reading: Reading) -> None:
    """BLIP-style: one record per caption (train) or per picture with a list of captions (val, test)."""
    path = reading.files["rows"]
    captions: dict[int, list[Any]] = {}
    first: dict[int, tuple[int, str]] = {}
    for number, key, image, texts in _blip_records(reading):
        first.setdefault(key, (number, image))
        captions.setdefault(key, []).extend(texts)
    for key, (number, image) in first.items():
        found = reading.pictures.find(image)
        reading.rows.add(str(path), number, id=str(key), image=found, captions=captions[key])


def _blip_records(reading: Reading) -> Iterator[tuple[int, int, str, list[Any]]]:
    path = reading.files["rows"]
    for number, record in rows(path):
        image, caption = record.get("image"), record.get("caption")
        key = coco_id(PurePosixPath(image).name) if isinstance(image, str) else None
        if key is None or not isinstance(image, str):
            reading.rows.add_bad(str(path), number, f"'image' is {image!r}, not the name of a picture of COCO")
        else:
            yield number, key, image, caption if isinstance(caption, list) else [caption]


def _official(name: str, file: str, rows: int, parts: frozenset[str], *aliases: str) -> Split:
    form = Form("official", {"captions": Needed(file, IMAGES_PAGE)}, read_official)
    mine = file.removeprefix("captions_").removesuffix(".json")
    pictures = coco_pictures(mine, *(folder for folder in LABELLED_FOLDERS if folder != mine))
    return Split(name, (form,), pictures, rows=rows, aliases=aliases, parts=parts)


def _test(name: str, rows: int, pictures: Pictures, *aliases: str) -> Split:
    form = Form("official", {"captions": Needed(f"image_info_{pictures.folders[0]}.json", IMAGES_PAGE)}, read_official)
    return Split(name, (form,), pictures, rows=rows, aliases=aliases, answered=False)


def _karpathy(part: str, rows: int) -> Split:
    name = f"karpathy-{part}"
    forms = (
        Form("official", {"karpathy": KARPATHY}, read_by_karpathy(name)),
        Form("BLIP-style", {"rows": Needed(f"coco_karpathy_{part}.json", BLIP_PAGE)}, read_blip),
    )
    return Split(name, forms, LABELLED, rows=rows, parts=KARPATHY_CELLS[name])


COCO = Benchmark(
    "coco",
    "COCO Captions",
    "caption",
    (
        _official("train", "captions_train2014.json", 82_783, TRAIN_2014, "train2014"),
        _official("val", "captions_val2014.json", 40_504, VAL_2014, "val2014"),
        _test("test", 40_775, coco_pictures("test2014"), "test2014"),
        _official("train2017", "captions_train2017.json", 118_287, TRAIN_2017),
        _official("val2017", "captions_val2017.json", 5_000, VAL_2017),
        _karpathy("train", 113_287),
        _karpathy("val", 5_000),
        _karpathy("test", 5_000),
    ),
    page="https://cocodataset.org/#captions-2015",
)
