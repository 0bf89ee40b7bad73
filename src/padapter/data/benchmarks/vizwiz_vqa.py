"""VizWiz-VQA: questions that blind people asked about their own photos, ten answers each."""

from __future__ import annotations

from typing import Any

from padapter.data.benchmarks.base import Benchmark, Form, Needed, Reading, Split
from padapter.data.benchmarks.vizwiz_images import ANNOTATIONS, vizwiz_pictures
from padapter.data.records import rows

PAGE = "https://vizwiz.org/tasks-and-datasets/vqa/"


def read_official(split: str, reading: Reading) -> None:
    """A list of ``{image, question, answers, answer_type, answerable}``; the file name of the image is the id."""
    path = reading.files["rows"]
    same: dict[str, str] = {}
    for number, record in rows(path):
        image, answers = record.get("image"), record.get("answers")
        if not isinstance(image, str) or not image:
            reading.rows.add_bad(str(path), number, "has no 'image'")
            continue
        if answers is not None and not _in_layout(answers):
            reading.rows.add_bad(str(path), number, "'answers' is no list of objects with an 'answer'")
            continue
        texts = [entry["answer"] for entry in answers] if answers is not None else None
        reading.rows.add(
            str(path),
            number,
            id=image,
            image=reading.pictures.find(f"{split}/{image}"),
            question=record.get("question"),
            answers=[same.setdefault(text, text) if isinstance(text, str) else text for text in texts or ()] or None,
            answer_type=record.get("answer_type"),
            answerable=record.get("answerable"),
        )


def _in_layout(answers: Any) -> bool:
    return isinstance(answers, list) and all(isinstance(entry, dict) and "answer" in entry for entry in answers)


def _split(name: str, rows: int, *aliases: str, answered: bool = True) -> Split:
    files = {"rows": Needed(f"{name}.json", PAGE, ANNOTATIONS)}
    form = Form("official", files, lambda reading: read_official(name, reading))
    return Split(name, (form,), vizwiz_pictures(name, PAGE), rows=rows, answered=answered, aliases=aliases)


VIZWIZ_VQA = Benchmark(
    "vizwiz-vqa",
    "VizWiz-VQA",
    "vqa",
    (_split("train", 20_523), _split("val", 4_319), _split("test", 8_000, answered=False)),
    page=PAGE,
    rule="vizwiz-leave-one-out",
)
