"""Reading back the three forms of a report."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

from padapter.comparison.report import csv as csv_form
from padapter.comparison.report import markdown, numbers, write_report
from padapter.comparison.report.analysis import Analysis
from padapter.comparison.report.content import build_content

VOID = {"meta", "link", "br", "hr", "img", "input"}
NASTY = 'A|B <script>alert("x")</script> & *c* $d$ `e`'


def written(results, folder) -> dict[str, str]:
    return {path.suffix[1:]: path.read_text(encoding="utf-8") for path in write_report(results, folder)}


def words(results) -> dict[str, str]:
    """The two forms that need no drawing, which is what takes the time."""
    content = build_content(Analysis(results))
    return {"md": markdown.render(content), "csv": csv_form.render(content)}


def csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def find(rows: list[dict[str, str]], table: str, row: str, column: str) -> dict[str, str]:
    (found,) = [each for each in rows if (each["table"], each["row"], each["column"]) == (table, row, column)]
    return found


def markdown_table(text: str, title: str) -> dict[str, dict[str, str]]:
    """The first table below a heading: row -> column -> cell, marks and all."""
    lines = text.split(f"## {title}\n", 1)[1].strip().split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    heads = [re.sub(r" \([^)]*\)$", "", head) for head in cells[0]]
    assert all(len(line) == len(heads) for line in cells)
    return {line[0].strip("*"): dict(zip(heads[1:], line[1:], strict=True)) for line in cells[2:]}


def plain_numbers(cell: str) -> list[float]:
    return [float(word) for word in re.findall(r"[+-]?\d+\.\d+", cell.replace(numbers.MINUS, "-"))]


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open, f"<{tag}/> closes itself only within SVG"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
