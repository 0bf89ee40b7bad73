"""``padapter data from-...`` and ``padapter data preview``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from padapter.cli.handlers import BAD_DATA, prepare

if TYPE_CHECKING:
    from padapter.converters import Converter

_PROBLEMS = 10


def convert_command(converter: Converter) -> Callable[[Any], None]:
    """The handler of one format: convert, say what was done, and check the result."""

    def run(options: Any) -> None:
        prepare(torch_too=False)
        done = converter.run(options)
        print(done.format())
        print(f"check: {done.report.format(limit=_PROBLEMS)}")
        if not done.report.ok:
            raise typer.Exit(BAD_DATA)
        print(f"look at it: padapter data preview {done.destination} -o preview.html")

    run.__doc__ = converter.read.__doc__
    return run
