"""Write a diagnosis: a page, or its numbers as JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from padapter.diagnose.options import DiagnoseOptions
from padapter.diagnose.results import Diagnosis
from padapter.errors import UserError

COLUMNS = (
    "layer", "part", "attention", "index", "state", "weights", "quantity", "group", "head", "mean", "std", "count"
)  # fmt: skip


def diagnose_run(options: DiagnoseOptions) -> Diagnosis:
    """``padapter diagnose``: measure a run and write what was asked for.

    Returns:
        What was found.

    Raises:
        UserError: a file exists or cannot be written, or anything is wrong with run or data.
    """
    from padapter.diagnose.collect import diagnose, planned
    from padapter.diagnose.embedding import check_tsne
    from padapter.diagnose.head_maps import chosen
    from padapter.evaluation.source import load_source
    from padapter.options import SourceOptions

    files = _files(options)
    maps = options.writes_page and options.points > 0
    if maps:
        check_tsne()  # now, and not after reading the data
    source = load_source(SourceOptions(run=options.run, device=options.device))
    heads = [] if options.head_maps is None else chosen(options.head_maps, planned(source.backbone, options.where))
    found = diagnose(
        source,
        options.data,
        split=options.split,
        rows=options.rows,
        points=options.points if maps else 0,
        where=options.where,
        batch_size=options.batch_size,
        seed=options.seed,
        quiet=options.quiet,
    )
    for flag, path in files:
        text = _page(found, heads, options.quiet) if path.suffix.lower() == ".html" else _numbers(found, path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as problem:
            raise UserError(f"{flag}: {path} cannot be written ({problem.strerror or problem})") from problem
    return found


def _files(options: DiagnoseOptions) -> list[tuple[str, Path]]:
    """What is to be written, by the option that names it."""
    files = [("--output", Path(options.output).expanduser())]
    if options.numbers is not None:
        files.append(("--numbers", Path(options.numbers).expanduser()))
    for flag, path in files:
        if path.is_dir():
            raise UserError(f"{flag}: {path} is a folder; name a file")
        if path.exists() and not options.overwrite:
            raise UserError(f"{flag}: {path} exists; --overwrite replaces it")
    return files


def to_json(found: Diagnosis) -> str:
    """The numbers as JSON: what was measured on what, and one record per number (`Diagnosis.numbers`)."""
    about = {name: getattr(found, name) for name in ("title", "model", "method", "data", "rows", "seed", "notes")}
    return json.dumps(about | {"numbers": [_without_nan(record) for record in found.numbers()]}, indent=1) + "\n"


def to_csv(found: Diagnosis) -> str:
    """The numbers as CSV, one line per number; an empty cell where a record has nothing."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_without_nan(record) for record in found.numbers())
    return file.getvalue()


def _page(found: Diagnosis, heads: Collection[str], quiet: bool) -> str:
    from padapter.diagnose.page import render
    from padapter.diagnose.sections import has_map
    from padapter.evaluation.progress import progress

    mapped = [layer for layer in found.layers if has_map(layer)]
    count = len(mapped) + sum(layer.heads for layer in mapped if layer.name in heads)
    with progress("drawing maps", count, quiet=quiet or not count) as advance:
        return render(found, heads=heads, drawn=advance)


def _numbers(found: Diagnosis, path: Path) -> str:
    return to_json(found) if path.suffix.lower() == ".json" else to_csv(found)


def _without_nan(record: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what was never counted has no mean."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in record.items()}
