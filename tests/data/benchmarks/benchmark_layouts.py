"""Miniature official layouts: real records where tests/golden has some, otherwise the documented fields."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from padapter.data import Field
from padapter.tasks import get_task

GOLDEN = Path(__file__).parents[2] / "golden" / "benchmarks"
VQA, ENTAILMENT, CAPTION = (get_task(name) for name in ("vqa", "entailment", "caption"))


@dataclass(frozen=True)
class Unanswered:
    """A task as `padapter predict` shows it to the readers."""

    name: str
    fields: tuple[Field, ...]


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_lines(path: Path, records) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def pictures(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (number % 256, 40, 90)).save(folder / name, "JPEG")


def golden(name: str):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def golden_lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines()]


def question(image: int, number: int, text: str = "What is it?") -> dict:
    return {"image_id": image, "question": text, "question_id": image * 1000 + number}


def annotation(image: int, number: int, *answers: str) -> dict:
    """Ten answers: those given, and the last one again and again."""
    texts = [*answers, *([answers[-1]] * (10 - len(answers)))]
    entries = [{"answer": text, "answer_confidence": "yes", "answer_id": place} for place, text in enumerate(texts, 1)]
    return {
        "question_id": image * 1000 + number,
        "image_id": image,
        "question_type": "what is",
        "answer_type": "other",
        "multiple_choice_answer": answers[-1],
        "answers": entries,
    }


def vqa_part(root: Path, part: str, questions, annotations=None) -> None:
    """The official files of one part of VQA v2."""
    head = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": part, "license": {"name": "CC"}}
    write(root / f"v2_OpenEnded_mscoco_{part}_questions.json", {**head, "questions": questions})
    if annotations is not None:
        write(root / f"v2_mscoco_{part}_annotations.json", {**head, "annotations": annotations})


def karpathy_image(key: int, split: str, *captions: str) -> dict:
    folder = "train2014" if split == "train" else "val2014"
    sentences = [
        {"raw": text, "tokens": text.split(), "imgid": key, "sentid": place} for place, text in enumerate(captions)
    ]
    return {
        "filepath": folder,
        "filename": f"COCO_{folder}_{key:012d}.jpg",
        "cocoid": key,
        "imgid": key,
        "split": split,
        "sentids": list(range(len(captions))),
        "sentences": sentences,
    }


def karpathy_file(root: Path) -> None:
    """Image 1 is train, 2 restval, 3 val, 4 test."""
    images = [
        karpathy_image(key, split, f"a picture of {split}", f"{split} again")
        for key, split in ((1, "train"), (2, "restval"), (3, "val"), (4, "test"))
    ]
    write(root / "dataset_coco.json", {"images": images, "dataset": "coco"})


def coco_pictures(root: Path) -> None:
    """The pictures of :func:`karpathy_file` under their names of 2014."""
    pictures(root / "train2014", "COCO_train2014_000000000001.jpg")
    pictures(root / "val2014", *(f"COCO_val2014_{key:012d}.jpg" for key in (2, 3, 4)))
