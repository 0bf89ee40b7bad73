"""Small data sets that the tests of this folder build."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from padapter.tasks import get_task

VQA, ENTAILMENT, CAPTION = (get_task(name) for name in ("vqa", "entailment", "caption"))


def picture(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def write_jsonl(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def vqa_row(**changes):
    return {"id": "1", "image": "a.png", "question": "What is it?", "answer": "a cat"} | changes


def vqa_file(folder: Path, *rows, name: str = "train.jsonl") -> Path:
    """A file with these rows beside the pictures a.png and b.png."""
    for stem in "ab":
        picture(folder / f"{stem}.png")
    return write_jsonl(folder / name, rows or [vqa_row()])


def problems(report):
    """(line, field, message) of each problem."""
    return [(problem.line, problem.field, problem.message) for problem in report.problems]
