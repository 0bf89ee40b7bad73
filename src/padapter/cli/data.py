"""``padapter data from-...`` and ``padapter data preview``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from padapter.cli.handlers import BAD_DATA, prepare

if TYPE_CHECKING:
    from padapter.importers import Importer
    from padapter.preview import PreviewOptions

_PROBLEMS = 10


def import_command(importer: Importer) -> Callable[[Any], None]:
    """The handler of one format: convert, say what was done, and check the result."""

    def run(options: Any) -> None:
        prepare(torch_too=False)
        done = importer.run(options)
        print(done.format())
        print(f"check: {done.report.format(limit=_PROBLEMS)}")
        if not done.report.ok:
            raise typer.Exit(BAD_DATA)
        print(f"look at it: padapter data preview {done.destination} -o preview.html")

    run.__doc__ = importer.read.__doc__
    return run


def preview_command(options: PreviewOptions) -> None:
    """Write a page of sample rows as the model will see them, with counts and everything that is wrong."""
    from padapter.preview.page import write_preview

    prepare(torch_too=options.model is not None)
    found = write_preview(options)
    report = found.survey.report
    shown = sum(map(len, found.cards.values()))
    problems = f"{len(report.problems)} problems" if report.problems else "no problems"
    print(f"{options.output}: {shown} of {report.rows} rows of the task {found.task.name}; {problems}")
