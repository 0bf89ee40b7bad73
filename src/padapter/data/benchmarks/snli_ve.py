"""SNLI-VE: is a statement about a picture of Flickr30k right, wrong or neither?"""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath
from typing import Any

from padapter.data.benchmarks.base import Benchmark, Form, Needed, Pictures, Reading, Split, stem_key
from padapter.data.records import rows
from padapter.data.schema import NO_LABEL

PAGE = "https://github.com/necla-ml/SNLI-VE"
BLIP_PAGE = f"no official place; the .jsonl files of {PAGE} will do"
LABELS = ("entailment", "neutral", "contradiction")
#: The words of BLIP-style files, by their meaning.
BLIP_LABELS = {"correct": "entailment", "incorrect": "contradiction", "ambiguous": "neutral"}
#: The current name of the image id, an older one, and that of e-SNLI-VE (whose values end with ``.jpg``).
ID_NAMES = ("Flickr30K_ID", "Flikr30kID", "Flickr30kID")

PICTURES = Pictures(
    ("flickr30k_images", "flickr30k-images", "flickr30k_images/flickr30k_images", "flickr30k", "images", ""),
    "https://shannon.cs.illinois.edu/DenotationGraph/",
    stem_key,
)


def read_official(reading: Reading) -> None:
    """SNLI records with an image id, or without one: then ``pairID`` has it. Pairs without majority are dropped."""
    path, made = reading.files["rows"], Counter[str]()
    for number, record in rows(path):
        pair = str(record.get("pairID") or "")
        if "vg_" in (pair[:3], str(record.get("captionID") or "")[:3]):
            reading.left_out["pair about a picture of Visual Genome, not of Flickr30k"] += 1
            continue
        image = flickr_id(record)
        if image is None:
            names = ", ".join(ID_NAMES)
            reading.rows.add_bad(str(path), number, f"has none of {names}, and no pairID to tell the picture from")
            continue
        key = pair or _made(image, made)
        _add(reading, number, key, f"{image}.jpg", record.get("sentence2"), record.get("gold_label"))


def flickr_id(record: dict[str, Any]) -> str | None:
    """The Flickr30k id of a record, without suffix, under any of its names or from ``pairID``."""
    given = next((record[name] for name in ID_NAMES if record.get(name) not in (None, "")), None)
    if given is not None:
        return str(given).removesuffix(".jpg")
    before, mark, _ = str(record.get("pairID") or "").partition(".jpg#")
    return before if mark and before else None


def read_blip(reading: Reading) -> None:
    """BLIP-style: a list of ``{img, hypothesis, label_s}`` without ids; they are made: image id and running number."""
    path, made = reading.files["rows"], Counter[str]()
    for number, record in rows(path):
        image = record.get("img", record.get("image"))
        if not isinstance(image, str) or not image:
            reading.rows.add_bad(str(path), number, "has no 'img'")
            continue
        word = str(record.get("label_s", record.get("label"))).lower()
        key = _made(PurePosixPath(image).name.removesuffix(".jpg"), made)
        _add(reading, number, key, image, record.get("hypothesis"), BLIP_LABELS.get(word, word))


def _add(reading: Reading, number: int, key: str, image: str, hypothesis: Any, label: Any) -> None:
    path = str(reading.files["rows"])
    if not isinstance(label, str) or label.strip().lower() not in (*LABELS, NO_LABEL):
        reading.rows.add_bad(path, number, f"the label is {label!r}; expected one of {', '.join(LABELS)}")
        return
    found = reading.pictures.find(image if "/" in image else f"{PICTURES.folders[0]}/{image}")
    # sentence1, a caption of the picture, is not read: it would give the answer away.
    reading.rows.add(path, number, id=key, image=found, hypothesis=hypothesis, label=label)


def _made(image: str, made: Counter[str]) -> str:
    made[image] += 1
    return f"{image}#{made[image]}"


def _split(name: str, rows: int) -> Split:
    forms = (
        Form("official", {"rows": Needed(f"snli_ve_{name}.jsonl", PAGE)}, read_official),
        Form("BLIP-style", {"rows": Needed(f"snli_ve_{name}.json", BLIP_PAGE)}, read_blip),
    )
    return Split(name, forms, PICTURES, rows=rows)


SNLI_VE = Benchmark(
    "snli-ve",
    "SNLI-VE",
    "entailment",
    (_split("train", 529_527), _split("dev", 17_858), _split("test", 17_901)),
    PAGE,
)
