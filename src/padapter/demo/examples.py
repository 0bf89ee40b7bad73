"""A few pictures from the data of runs, to try the page with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from padapter.data import open_image
from padapter.data.schema import asked_fields
from padapter.data.sources import open_source
from padapter.errors import UserError
from padapter.evaluation.source import Source
from padapter.options import TrainOptions, options_from

_WORDS = 60
_DRAWN = 24


def write_examples(
    runs: list[str], sources: list[Source], folder: Path, *, each: int = 3
) -> list[tuple[str, str, str]]:
    """Write pictures of rows that the runs were scored on (or trained on) where the page can show them.

    Data that would have to be downloaded give none, and neither do data that are no longer there.

    Args:
        runs: folders of runs.
        sources: how each is asked.
        folder: gets the pictures, as PNG.
        each: how many pictures per data set and task.

    Returns:
        Task, picture, and the question or hypothesis about it, empty for captions.
    """
    found: list[tuple[str, str, str]] = []
    known = set()
    for run, source in zip(runs, sources, strict=True):
        trained = options_from(TrainOptions, Path(run) / "config.yaml")
        data, split = (trained.eval, trained.eval_split) if trained.eval else (trained.train, trained.train_split)
        if (data, split, source.task.name) in known or not _is_here(data):
            continue
        known.add((data, split, source.task.name))
        try:
            for picture, text in _rows(*_part(data, split), source, each):
                path = folder / f"example-{len(found) + 1}.png"
                open_image(picture).save(path)
                found.append((source.task.name, str(path), text))
        except (UserError, OSError):
            continue  # examples are a courtesy; data may have moved since the run was made
    return found


def _is_here(data: str) -> bool:
    """Whether data can be read without the network: a file, a folder, or a scheme such as ``shapes:``."""
    return ":" in data or Path(data).expanduser().exists()


def _part(data: str, split: str) -> tuple[str, str]:
    """Rows of built-in worlds are drawn when they are read, so few are asked for; the first ones are the same."""
    return (f"{data}:{split}:{_DRAWN}" if data.startswith("shapes:") and data.count(":") == 1 else data), split


def _rows(data: str, split: str, source: Source, limit: int) -> Iterator[tuple[bytes, str]]:
    """Rows from all over the split, each with another picture."""
    asked = asked_fields(source.task.fields)
    opened = open_source(data, source.task.name, split=split)
    count, seen = len(opened.rows), set()
    for number in range(0, count, max(1, count // (4 * limit))):
        row = opened.rows[number]
        values = row.values or {}
        text = values.get(asked[0].name) if asked else ""
        if not isinstance(text, str) or (asked and not text.strip()) or len(text.split()) > _WORDS:
            continue
        key = opened.images.locate(values.get("image"))
        if key in seen:
            continue
        seen.add(key)
        yield opened.images.read(key), text
        if len(seen) == limit:
            return
