"""Checkpoints that are complete or not there.

A checkpoint is written into a hidden folder and renamed when its last byte is on the disk, so a folder named
``checkpoint-N`` is always complete: killing the process at any moment loses at most the steps since the last one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from padapter.evaluation.files import read_json

NAME = re.compile(r"^checkpoint-(\d+)$")
STATE = "padapter.json"


def step_of(path: Path) -> int:
    """The number of optimizer steps behind a checkpoint."""
    match = NAME.match(path.name)
    if match is None:
        raise ValueError(f"{path} is not named checkpoint-N")
    return int(match.group(1))


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if NAME.match(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


@contextmanager
def written_whole(folder: Path, step: int) -> Iterator[Path]:
    """Yield a hidden folder that becomes ``checkpoint-<step>`` when the block ends without an exception."""
    final = folder / f"checkpoint-{step}"
    hidden = folder / f".checkpoint-{step}.incomplete"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    yield hidden
    for path in hidden.rglob("*"):
        if path.is_file():
            _to_disk(path)
    if final.exists():
        shutil.rmtree(final)
    hidden.replace(final)
    _to_disk(folder)


def rotate(folder: Path, keep: int, best: int | None = None) -> None:
    """Delete all but the latest ``keep`` checkpoints, and what an interrupted write left behind.

    Args:
        folder: of the checkpoints.
        keep: how many stay.
        best: step of a further one that stays.
    """
    for path in complete_checkpoints(folder)[:-keep]:
        if step_of(path) != best:
            shutil.rmtree(path)
    if folder.is_dir():
        for path in folder.glob(".checkpoint-*.incomplete"):
            shutil.rmtree(path)


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write what this package remembers beside the trainer's own state."""
    (folder / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")


def read_state(folder: Path) -> dict[str, Any]:
    """Read what :func:`write_state` wrote."""
    return read_json(folder / STATE, f"delete {folder} to resume from the checkpoint before it")


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
