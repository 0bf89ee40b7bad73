"""VizWiz-Captions: captions of photos that blind people took."""

from __future__ import annotations

from collections import Counter
from typing import Any

from padapter.data.benchmarks.base import Benchmark, Form, Needed, Reading, Split, whole_number
from padapter.data.benchmarks.vizwiz_images import ANNOTATIONS, vizwiz_pictures
from padapter.data.records import members

PAGE = "https://vizwiz.org/tasks-and-datasets/image-captioning/"


def read_official(split: str, reading: Reading) -> None:
    """``{images, annotations}``; ids are global. Pre-canned and rejected captions are passed over."""
    path = reading.files["captions"]
    images: dict[int, tuple[int, Any]] = {}
    captions: dict[int, list[Any]] = {}
    passed: Counter[str] = Counter()
    annotated = False
    for name, number, record in members(path, "images", optional=("annotations",)):
        key = whole_number(record.get("id" if name == "images" else "image_id"))
        if key is None:
            reading.rows.add_bad(str(path), number, f"a record of {name!r} has no whole number as image id")
        elif name == "images":
            images[key] = (number, record.get("file_name"))
        else:
            annotated = True
            kind = next((kind for kind in ("is_precanned", "is_rejected") if record.get(kind)), None)
            passed[kind or ""] += 1
            captions.setdefault(key, []).extend([] if kind else [record.get("caption")])
    for key, (number, name) in images.items():
        texts = captions.pop(key, [])
        if annotated and not texts:
            reading.left_out["image left without a reference (its captions are pre-canned or rejected)"] += 1
            continue
        image = reading.pictures.find(f"{split}/{name}")
        reading.rows.add(str(path), number, id=str(key), image=image, captions=texts or None)
    for kind, word in (("is_precanned", "pre-canned"), ("is_rejected", "rejected")):
        if passed[kind]:
            reading.notes.append(f"{passed[kind]} {word} captions passed over, as the official scoring does")
    if captions:
        reading.rows.add_bad(str(path), 1, f"{len(captions)} images have captions and are not listed")


def _split(name: str, rows: int, *, answered: bool = True) -> Split:
    files = {"captions": Needed(f"{name}.json", PAGE, ANNOTATIONS)}
    form = Form("official", files, lambda reading: read_official(name, reading))
    return Split(name, (form,), vizwiz_pictures(name, PAGE), rows=rows, answered=answered)


VIZWIZ_CAPTION = Benchmark(
    "vizwiz-caption",
    "VizWiz-Captions",
    "caption",
    (_split("train", 23_431), _split("val", 7_750), _split("test", 8_000, answered=False)),
    page=PAGE,
)
