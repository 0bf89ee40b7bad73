"""The report as Markdown, for a repository or a pull request."""

from __future__ import annotations

import re
from itertools import groupby

from padapter.comparison.report.analysis import BEST
from padapter.comparison.report.content import Content
from padapter.comparison.report.tables import Cell, Table

# What Markdown or HTML takes for markup inside a line, and what it takes for a heading or a list where one begins.
_INSIDE = re.compile(r"([\\`*\[\]<>|~$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_AT_START = re.compile(r"^(?:(#+|[+-])(?=\s|$)|([=-])(?=[=-]*$)|(\d+)(?=[.)](?:\s|$)))")


def escape(text: str) -> str:
    """Text from a recipe, as literal Markdown within a line."""
    return _INSIDE.sub(r"\\\1", " ".join(text.split()))


def paragraph(text: str) -> str:
    """Text from a recipe, as a literal Markdown paragraph."""
    line = escape(text)
    found = _AT_START.match(line)
    if not found:
        return line
    at = len(found[3] or "")  # of a number, the dot behind it is what makes a list
    return f"{line[:at]}\\{line[at:]}"


def render(content: Content) -> str:
    """The whole report."""
    parts = [f"# {escape(content.title)}"]
    if content.description:
        parts.append(paragraph(content.description))
    parts.append(f"**{escape(content.headline)}**")
    parts += [f"> {escape(notice)}" for notice in content.notices]
    for table in content.main_tables:
        parts += [f"## {escape(table.title)}", *_table(table)]
    if content.rates:
        parts += ["## Learning rates"]
        for table in content.rates:
            parts += [f"### {escape(table.title)}", _grid(table)]
        parts.append(_caption(content.rates[0]))
    if content.settings.tables:
        parts += ["## Settings"]
        for table in content.settings.tables:
            parts += [f"### {escape(table.title)}", _grid(table, ":--")]
        if content.settings.by_seed:
            parts.append(f"Different from seed to seed: {escape(', '.join(content.settings.by_seed))}.")
    if content.provenances:
        parts += ["## Provenance"]
        for runs, pairs in content.provenances:
            parts.append(f"{runs} of {content.runs} runs:")
            parts.append("\n".join(f"- {escape(name)}: {escape(value)}" for name, value in pairs))
    parts.append("The figures are in `report.html`, the numbers for programs in `report.csv`.")
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> list[str]:
    return [_grid(table), _caption(table)] if table.caption else [_grid(table)]


def _caption(table: Table) -> str:
    return escape(" ".join(table.caption))


def _grid(table: Table, align: str = "--:") -> str:
    heads = [escape(table.head)]
    for column in table.columns:
        label = f"{column.group}, {column.label}" if column.group else column.label
        heads.append(escape(f"{label} ({column.note})" if column.note else label))
    lines = [heads, [":--", *[align] * len(table.columns)]]
    for apart, rows in groupby(table.rows, key=lambda row: row.apart):
        lines += [[_apart(row.label) if apart else escape(row.label), *map(_cell, row.cells)] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _apart(label: str) -> str:
    """Markdown tables have no line between rows: what stands apart is in italics."""
    return f"*{escape(label)}*"


def _cell(cell: Cell) -> str:
    text = escape(cell.text) if not cell.value else cell.text
    words = [f"**{text}**" if cell.mark == BEST else text]
    if cell.sign:
        words.append(cell.sign)
    if cell.note:
        words.append(f"({escape(cell.note)})")
    return " ".join(words)
