"""Small sources that the tests of this folder build."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from padapter.data import check_data
from padapter.importers import IMPORTERS
from padapter.tasks import get_task


def picture(path: Path, number: int = 0) -> Path:
    """A picture of its own for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Far enough apart for JPEG too.
    Image.new("RGB", (8, 8), (number % 12 * 20, number // 12 * 20, 7)).save(path)
    return path


def pictures(folder: Path, count: int, suffix: str = ".png") -> list[Path]:
    return [picture(folder / f"{number}{suffix}", number) for number in range(count)]


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def converted(name: str, source: Path, destination: Path, **options):
    """The conversion and its rows by split; the result passes the full check, which decodes every picture."""
    done = IMPORTERS[name](source, destination, **options)
    assert done.report.ok, done.report.format()
    assert check_data(str(destination), get_task(done.task)).ok
    rows = {split: rows_of(destination / f"{split}.jsonl") for split in done.rows}
    assert {split: len(its) for split, its in rows.items()} == done.rows
    return done, rows


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def every(rows: dict[str, list[dict]]) -> list[dict]:
    return [row for its in rows.values() for row in its]
