"""VQA v2.0: questions about pictures of COCO, ten answers each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from padapter.data.benchmarks.base import (
    Benchmark,
    Form,
    Needed,
    PictureIndex,
    Pictures,
    Reading,
    Split,
    some,
    stem_key,
    whole_number,
)
from padapter.data.benchmarks.coco_images import (
    KARPATHY,
    KARPATHY_CELLS,
    LABELLED,
    TRAIN_2014,
    VAL_2014,
    coco_pictures,
    read_karpathy,
)
from padapter.data.records import members, rows
from padapter.errors import UserError

PAGE = "https://visualqa.org/download.html"
BLIP_PAGE = "https://github.com/salesforce/BLIP (its data lists)"

_ABOVE = ("", "vg/", "visual_genome/", "images/")

#: Visual Genome's pictures, which BLIP-style training files may add.
GENOME = Pictures(
    (*(f"{above}{folder}" for above in _ABOVE for folder in ("VG_100K", "VG_100K_2")), "vg", "visual_genome"),
    "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html",
    stem_key,
)

#: What BLIP's data reader gives to an answer of Visual Genome; the answers of one question of VQA sum to 1.
GENOME_WEIGHT = 0.2


def read_official(*parts: str) -> Callable[[Reading], None]:
    """A reader of the questions, and the annotations where there are any, of these official parts, in order."""
    return partial(_read_official, parts=parts)


def _read_official(
    reading: Reading, parts: tuple[str, ...], wanted: frozenset[int] | None = None, seen: set[int] | None = None
) -> None:
    for part in parts:
        annotations = reading.files.get(f"{part} annotations")
        answers = _read_annotations(annotations, wanted) if annotations else None
        _read_questions(reading, part, answers, annotations, wanted, seen)


def _read_annotations(path: Path, wanted: frozenset[int] | None) -> dict[int, tuple[Any, ...]]:
    """Question id -> (number of the record, image id, question type, answer type, answers)."""
    found: dict[int, tuple[Any, ...]] = {}
    same: dict[str, str] = {}
    repeated = []
    for _, number, record in members(path, "annotations"):
        question, image = whole_number(record.get("question_id")), whole_number(record.get("image_id"))
        if question is None or image is None:
            raise UserError(f"{path}, record {number}: question_id and image_id must be whole numbers.")
        if wanted is not None and image not in wanted:
            continue
        texts = _texts(record.get("answers"), same)
        kinds = (_shared(record.get(name), same) for name in ("question_type", "answer_type"))
        if question in found:
            repeated.append(question)
        found[question] = (number, image, *kinds, texts)
    if repeated:
        raise UserError(f"{path}: {len(repeated)} questions are annotated more than once: {some(repeated)}.")
    return found


def _texts(answers: Any, same: dict[str, str]) -> list[Any] | None:
    """The answers of a record, equal ones as one object; None if they are not in the official layout."""
    if not isinstance(answers, list) or not all(isinstance(entry, dict) and "answer" in entry for entry in answers):
        return None
    texts = [entry["answer"] for entry in answers]
    return [_shared(text, same) for text in texts]


def _shared(value: Any, same: dict[str, str]) -> Any:
    """Equal texts as one object: there are few different ones among millions."""
    return same.setdefault(value, value) if isinstance(value, str) else value


def _read_questions(
    reading: Reading,
    part: str,
    answers: dict[int, tuple[Any, ...]] | None,
    annotations: Path | None,
    wanted: frozenset[int] | None,
    seen: set[int] | None,
) -> None:
    path = reading.files[f"{part} questions"]
    joined = 0
    pictures = part.replace("-dev", "")
    for _, number, record in members(path, "questions"):
        question, image = whole_number(record.get("question_id")), whole_number(record.get("image_id"))
        if question is None or image is None:
            reading.rows.add_bad(str(path), number, "question_id and image_id must be whole numbers")
            continue
        if wanted is not None and image not in wanted:
            continue
        if seen is not None:
            seen.add(image)
        row = {
            "id": str(question),
            "image": reading.pictures.find(f"{pictures}/COCO_{pictures}_{image:012d}.jpg"),
            "question": record.get("question"),
        }
        if answers is None:
            reading.rows.add(str(path), number, **row)
            continue
        known = answers.pop(question, None)
        if known is None:
            reading.rows.add_bad(str(path), number, f"question {question} has no annotation in {annotations}")
        elif known[1] != image:
            why = f"question {question} is about image {image}, its annotation about image {known[1]}"
            reading.rows.add_bad(str(path), number, why)
        else:
            joined += 1
            texts = known[4]
            reading.rows.add(str(path), number, **row, question_type=known[2], answer_type=known[3], answers=texts)
    for question, (number, *_) in (answers or {}).items():
        why = f"the annotation of question {question} has no question in {path}"
        reading.rows.add_bad(str(annotations), number, why)
    if answers and not joined and len(reading.rows):
        raise UserError(f"{path} and {annotations} have no question in common: do they belong together?")


def read_by_karpathy(split: str, *parts: str) -> Callable[[Reading], None]:
    """A reader of the questions on the pictures of one part of the Karpathy split."""

    def read(reading: Reading) -> None:
        wanted = frozenset(key for _, key, _ in read_karpathy(reading.files["karpathy"], split))
        seen: set[int] = set()
        _read_official(reading, parts, wanted, seen)
        if len(seen) < len(wanted):
            reading.notes.append(f"{len(wanted) - len(seen)} of {len(wanted)} pictures of {split} have no question")

    return read


def read_blip(reading: Reading) -> None:
    """BLIP-style: a list of ``{dataset, image, question, question_id, answer}``; ``vg``, Visual Genome, weighs less."""
    path = reading.files["rows"]
    genome: PictureIndex | None = None
    same: dict[str, str] = {}
    for number, record in rows(path):
        image, question = record.get("image"), record.get("question_id")
        if not isinstance(image, str) or not isinstance(question, (int, str)):
            reading.rows.add_bad(str(path), number, "has no 'image' or no 'question_id'")
            continue
        from_genome = record.get("dataset") == "vg"
        if from_genome and genome is None:
            genome = PictureIndex(reading.root, GENOME)
            reading.pages.append(f"{GENOME.page} (Visual Genome)")
        answers = record.get("answer")
        answers = [answers] if isinstance(answers, str) else answers
        if isinstance(answers, list):
            answers = [_shared(text, same) for text in answers]
        reading.rows.add(
            str(path),
            number,
            # Both data sets number their questions themselves.
            id=f"vg-{question}" if from_genome else str(question),
            image=(genome if from_genome and genome else reading.pictures).find(image),
            question=record.get("question"),
            answers=answers,
            weight=record.get("weight", GENOME_WEIGHT if from_genome else None),
        )


def _files(*parts: str, answered: bool = True) -> dict[str, Needed]:
    files = {}
    for part in parts:
        files[f"{part} questions"] = Needed(f"v2_OpenEnded_mscoco_{part}_questions.json", PAGE)
        if answered:
            files[f"{part} annotations"] = Needed(f"v2_mscoco_{part}_annotations.json", PAGE)
    return files


def _karpathy(part: str, rows: int, *official: str) -> Split:
    name = f"karpathy-{part}"
    return Split(
        name,
        (
            Form("official", {**_files(*official), "karpathy": KARPATHY}, read_by_karpathy(name, *official)),
            Form("BLIP-style", {"rows": Needed(f"vqa_karpathy_{part}.json", BLIP_PAGE)}, read_blip),
        ),
        LABELLED,
        rows=rows,
        parts=KARPATHY_CELLS[name],
    )


def _official(name: str, part: str, rows: int | None, *aliases: str, answered: bool = True, **more: Any) -> Split:
    form = Form("official", _files(part, answered=answered), read_official(part))
    return Split(name, (form,), rows=rows, answered=answered, aliases=(part, *aliases), **more)


VQAV2 = Benchmark(
    "vqav2",
    "VQA v2.0",
    "vqa",
    (
        _official("train", "train2014", 443_757, pictures=LABELLED, parts=TRAIN_2014),
        _official("val", "val2014", 214_354, pictures=LABELLED, parts=VAL_2014),
        _official("test", "test2015", 447_793, pictures=coco_pictures("test2015"), answered=False),
        _official("testdev", "test-dev2015", None, "test-dev", pictures=coco_pictures("test2015"), answered=False),
        _karpathy("train", 605_102, "train2014", "val2014"),
        _karpathy("val", 26_729, "val2014"),
        _karpathy("test", 26_280, "val2014"),
    ),
    page="https://visualqa.org",
)
