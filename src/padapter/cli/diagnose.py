"""``padapter diagnose``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from padapter.cli.handlers import prepare

if TYPE_CHECKING:
    from padapter.diagnose import DiagnoseOptions


def diagnose_command(options: DiagnoseOptions) -> None:
    """Show what adaptation did to attention: a page, or numbers, about every attention layer of a run."""
    prepare()
    from padapter.diagnose.page import headlines
    from padapter.diagnose.writing import diagnose_run

    found = diagnose_run(options)
    for note in found.notes:
        print(f"note: {note}")
    for sentence in headlines(found):
        print(sentence)
    written = " and ".join(filter(None, (options.output, options.numbers)))
    print(f"{written}: {len(found.layers)} attention layers, {found.rows} row{'s' * (found.rows != 1)}")
