"""The report as CSV: one line for every number, for programs and spreadsheets."""

from __future__ import annotations

import csv
import io

from padapter.comparison.report.content import Content

HEADER = ("table", "row", "column", "value", "std", "low", "high", "unit", "runs", "mark", "note")
# A cell that begins with one of these is a formula to spreadsheets.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render(content: Content) -> str:
    """All numbers of all tables, in a long table; names that a spreadsheet would run get an apostrophe in front."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEADER)
    for table in (*content.main_tables, *content.rates):
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                name = f"{column.group}, {column.label}" if column.group else column.label
                numbers = (cell.value, cell.std, cell.low, cell.high)
                runs = "" if cell.runs is None else cell.runs
                texts = (_harmless(text) for text in (table.key, row.label, name))
                writer.writerow((*texts, *numbers, cell.unit, runs, cell.mark, _harmless(cell.note)))
    return file.getvalue()


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
