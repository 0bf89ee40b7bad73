"""Write a diagnosis: a page, or its numbers as JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
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
    from padapter.diagnose.collect import diagnose
    from padapter.diagnose.embedding import check_tsne

    files = [("--output", Path(options.output).expanduser())]
    if options.numbers is not None:
        files.append(("--numbers", Path(options.numbers).expanduser()))
    for flag, path in files:
        if path.is_dir():
            raise UserError(f"{flag}: {path} is a folder; name a file")
        if path.exists() and not options.overwrite:
            raise UserError(f"{flag}: {path} exists; --overwrite replaces it")
    maps = options.writes_page and options.points > 0
    if maps:
        check_tsne()  # now, and not after reading the data
    found = diagnose(
        options.run,
        options.data,
        split=options.split,
        rows=options.rows,
        points=options.points if maps else 0,
        where=options.where,
        batch_size=options.batch_size,
        seed=options.seed,
        device=options.device,
        quiet=options.quiet,
    )
    for flag, path in files:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_as_text(found, path.suffix.lower()), encoding="utf-8")
        except OSError as problem:
            raise UserError(f"{flag}: {path} cannot be written ({problem.strerror or problem})") from problem
    return found


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


def _as_text(found: Diagnosis, suffix: str) -> str:
    if suffix == ".html":
        from padapter.diagnose.page import render

        return render(found)
    return to_json(found) if suffix == ".json" else to_csv(found)


def _without_nan(record: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what was never counted has no mean."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in record.items()}
