"""A matplotlib figure as inline SVG: the page's colours and font, no foreign ids, the same bytes every time."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that stand for the page's own, so that a figure follows light and dark: put in by name, replaced in the SVG.
INK, MUTED, GRID, SURFACE, APART = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", SURFACE: "--surface", APART: "--apart"}
COLOURS = 8


def colour(index: int) -> str:
    """The stand-in for the page's ``--m<index>``; indices go round."""
    return f"#0600{index % COLOURS:02x}"


@dataclass(frozen=True)
class Palette:
    """The colours of a figure.

    Attributes:
        ink: text.
        muted: axes and their labels.
        grid: lines behind the data.
        surface: what figures lie on, around markers.
        apart: what stands back.
        series: what is told apart.
    """

    ink: str
    muted: str
    grid: str
    surface: str
    apart: str
    series: tuple[str, ...]


#: For `to_svg`: the page's own colours.
PAGE = Palette(INK, MUTED, GRID, SURFACE, APART, tuple(colour(index) for index in range(COLOURS)))
#: For figures that stand alone: those of a page on white.
LIGHT = Palette(
    "#1b1e24", "#5b6270", "#e1e3e8", "#ffffff", "#6b7280",
    ("#0068b5", "#c84e00", "#00795a", "#b0408a", "#8f6b00", "#5b4fc4", "#7a4a2b", "#3d7f8c"),
)  # fmt: skip


def _style(palette: Palette) -> dict[str, Any]:
    return {
        "svg.fonttype": "none",  # letters, not outlines: small, searchable, in the page's font
        "text.parse_math": False,  # a dollar in a recipe's label is a dollar
        "font.size": 11.0,
        "axes.titlesize": 11.0,
        "axes.labelsize": 11.0,
        "xtick.labelsize": 10.0,
        "ytick.labelsize": 10.0,
        "text.color": palette.ink,
        "axes.labelcolor": palette.muted,
        "axes.edgecolor": palette.grid,
        "axes.facecolor": "none",
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": palette.grid,
        "grid.linewidth": 0.7,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "xtick.major.size": 0.0,
        "ytick.major.size": 0.0,
        "xtick.minor.size": 0.0,
        "figure.facecolor": "none" if palette is PAGE else palette.surface,
        "lines.linewidth": 1.8,
    }


@contextmanager
def style(palette: Palette = PAGE) -> Iterator[None]:
    """Draw in our style, whatever the user's own matplotlib settings are; they come back afterwards."""
    import matplotlib.style

    with warnings.catch_warnings(), matplotlib.style.context(["default", _style(palette)]):
        # Only widths are measured with matplotlib's font; the browser has the letters.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def to_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """Write a figure as an ``<svg>`` element for the middle of a page.

    Args:
        figure: drawn within `style`.
        name: begins all ids in it; must be unique in the page.
        title: what it is, for screen readers.
        description: what it shows, for screen readers.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    box = re.search(r'viewBox="([^"]+)"', text)
    body = re.search(r"<svg[^>]*>(.*)</svg>", text, re.DOTALL)
    if box is None or body is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    inner = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body[1], flags=re.DOTALL)
    inner = re.sub(r'\b(id=")', rf"\g<1>{name}-", inner)
    inner = re.sub(r"(url\(#|xlink:href=\"#)", lambda match: match[1].replace("xlink:", "") + f"{name}-", inner)
    inner = re.sub(r" ?font-family: [^;\"]*;?", "", inner)  # that of the page
    inner = re.sub(r"\n\s*", "\n", inner).strip()
    for stand_in, variable in (*_VARIABLES.items(), *((colour(i), f"--m{i}") for i in range(COLOURS))):
        inner = inner.replace(stand_in, f"var({variable})")
    head = (
        f'<svg viewBox="{box[1]}" role="img" aria-labelledby="{name}-title {name}-text">'
        f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-text">{html.escape(description)}</desc>'
    )
    return f"{head}\n{inner}\n</svg>"
