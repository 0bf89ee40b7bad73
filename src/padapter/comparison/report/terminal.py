"""The table of scores in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from padapter.comparison.records import Results
from padapter.comparison.report.analysis import BEST, Analysis
from padapter.comparison.report.content import build_content
from padapter.comparison.report.tables import Cell


def print_scores(results: Results) -> None:
    """Print the sentence at the top of the report, what a reader must know, and the scores."""
    content = build_content(Analysis(results))
    console = Console(soft_wrap=False, highlight=False)
    grid = Grid(title=Text(f"{content.title}: {content.scores.title.lower()}"), title_justify="left")
    grid.add_column(content.scores.head, overflow="fold")
    for column in content.scores.columns:
        grid.add_column(Text("\n".join(filter(None, (column.label, column.note)))), justify="right", overflow="fold")
    rows = content.scores.rows
    for number, row in enumerate(rows):
        ends = number + 1 < len(rows) and rows[number + 1].apart != row.apart
        label = Text(row.label, "italic" if row.apart else "")
        grid.add_row(label, *map(_cell, row.cells), end_section=ends)
    console.print(grid)
    for line in (content.headline, *content.notices):
        console.print(Text(line))


def _cell(cell: Cell) -> Text:
    words = Text(cell.text, "bold" if cell.mark == BEST else "")
    for more in filter(None, (cell.sign, cell.note and f"({cell.note})")):
        words.append(f" {more}", "not bold")
    return words
