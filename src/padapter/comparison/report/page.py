"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from padapter.comparison.report import figures
from padapter.comparison.report.analysis import Analysis
from padapter.comparison.report.content import Content
from padapter.comparison.report.figures import Drawing, Look
from padapter.comparison.report.tables import Cell, Row, Table
from padapter.pages import render_page

# The markers of the drawings, as SVG in a box from -8 to 8, and their dashes, for the legend.
SHAPES = (
    '<circle r="4.2"/>',
    '<rect x="-3.8" y="-3.8" width="7.6" height="7.6"/>',
    '<polygon points="0,-4.8 4.8,4 -4.8,4"/>',
    '<polygon points="0,-5.4 5.4,0 0,5.4 -5.4,0"/>',
    '<polygon points="0,4.8 4.8,-4 -4.8,-4"/>',
    '<polygon points="-1.8,-5 1.8,-5 1.8,-1.8 5,-1.8 5,1.8 1.8,1.8 1.8,5 -1.8,5 -1.8,1.8 -5,1.8 -5,-1.8 -1.8,-1.8"/>',
    '<polygon points="0,-2.5 3,-5 5,-3 2.5,0 5,3 3,5 0,2.5 -3,5 -5,3 -2.5,0 -5,-3 -3,-5"/>',
    '<polygon points="0,-5 4.8,-1.5 2.9,4 -2.9,4 -4.8,-1.5"/>',
)
DASH_ARRAYS = ("", "5 2", "1.5 1.5", "6 2 1.5 2")


@dataclass(frozen=True)
class Key:
    """A method in a legend."""

    label: str
    variable: str
    shape: str
    dash: str


@dataclass(frozen=True)
class Gallery:
    """Figures under one heading.

    Attributes:
        name: anchor.
        title: heading.
        text: how to read them.
        drawings: one for every benchmark.
        keys: the legend; empty where the drawings name the methods themselves.
        mark: "marker" or "line", what the legend shows.
    """

    name: str
    title: str
    text: str
    drawings: tuple[Drawing, ...]
    keys: tuple[Key, ...] = ()
    mark: str = "marker"


def render(content: Content, analysis: Analysis) -> str:
    """The whole page."""
    return render_page(
        __package__,
        content=content,
        forest=figures.forest(analysis),
        galleries=_galleries(analysis),
        parts=_parts,
        groups=_groups,
        bodies=_bodies,
    )


def _galleries(analysis: Analysis) -> list[Gallery]:
    keys = tuple(_key(method.label, look) for method, look in _used_looks(analysis))
    losses, scores = figures.loss_curves(analysis), figures.score_curves(analysis)
    over = "Mean over the seeds; the band goes from the least to the greatest."
    if figures.curve_runs(analysis.runs):
        over += " Neighbouring steps are averaged."
    found = [
        Gallery(
            "parameters",
            "Score against trainable parameters",
            "Mean and standard deviation over the seeds; parameters on a logarithmic scale.",
            tuple(figures.scatter(analysis)),
            keys,
        ),
        Gallery("loss", "Training loss", over, tuple(losses), keys, "line"),
        Gallery("validation", "Validation score during training", over, tuple(scores), keys, "line"),
    ]
    return [gallery for gallery in found if gallery.drawings]


def _used_looks(analysis: Analysis) -> list[tuple[Any, Look]]:
    looks = figures.looks(analysis.results.methods)
    return [(method, looks[method.name]) for method in analysis.results.methods if analysis.runs_of(method.name)]


def _key(label: str, look: Look) -> Key:
    variable = "--apart" if look.colour < 0 else f"--m{look.colour}"
    return Key(label, variable, SHAPES[look.marker], DASH_ARRAYS[look.dash])


def _parts(cell: Cell) -> tuple[str, str]:
    """A cell's number, and what is set smaller behind it: the spread or the interval."""
    for separator in (" ± ", " ["):
        if separator in cell.text:
            at = cell.text.index(separator)
            return cell.text[:at], cell.text[at + 1 :]
    return cell.text, ""


def _groups(table: Table) -> list[tuple[str, int]]:
    """Headings that columns share, with how many; empty if none do."""
    if not any(column.group for column in table.columns):
        return []
    return [(group, len(list(columns))) for group, columns in groupby(table.columns, key=lambda column: column.group)]


def _bodies(table: Table) -> list[tuple[bool, list[Row]]]:
    """Rows that stand apart, and the others."""
    return [(apart, list(rows)) for apart, rows in groupby(table.rows, key=lambda row: row.apart)]
