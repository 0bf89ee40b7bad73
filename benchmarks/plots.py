"""Plots of ``docs/performance.md``: SVG files that name the content they were drawn from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What grows in scaling.json -> title and label of the axis.
PANELS = {
    "keys": ("image tokens (keys)", "attention, forward + backward"),
    "queries": ("text tokens (queries)", "attention, forward + backward"),
    "heads": ("heads", "attention, forward + backward"),
    "batch": ("rows", "attention, forward + backward"),
    "reduction_factor": ("reduction factor", "training step of two layers"),
}
COLOURS = {"sdpa": "#777777", "adapter": "#777777", "p-Laplacian": "#c44e1b", "p-adapter": "#c44e1b"}
_STYLE = {"svg.fonttype": "none", "font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False}


def scaling(result: Mapping[str, Any]) -> Figure:
    """Milliseconds against each size, both axes logarithmic; bands are quartiles."""
    from matplotlib.figure import Figure
    from matplotlib.style import context

    with context(["default", _STYLE]):
        figure = Figure(figsize=(9.0, 5.6), layout="constrained", facecolor="white")
        grid = figure.subplots(2, 3)
        for axes, what in zip(grid.flat, PANELS, strict=False):
            _panel(axes, what, [case for case in result["cases"] if case["grows"] == what])
        grid.flat[-1].axis("off")
    return figure


def _panel(axes: Axes, what: str, cases: list[dict[str, Any]]) -> None:
    label, title = PANELS[what]
    sizes = [case["size"] for case in cases]
    for side in cases[0]["median"]:
        milliseconds = [1000 * case["median"][side] for case in cases]
        low, high = ([1000 * case["quartiles"][side][end] for case in cases] for end in (0, 1))
        axes.plot(sizes, milliseconds, marker="o", markersize=3, color=COLOURS[side], label=side)
        axes.fill_between(sizes, low, high, color=COLOURS[side], alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size}" for size in sizes])
    axes.set_xlabel(label)
    axes.set_ylabel("ms")
    axes.set_title(title, fontsize=9)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False)


def digest(path: Path) -> str:
    """Name and content of a file, in short."""
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def save(figure: Figure, path: Path, source: str) -> None:
    """Write an SVG, the same bytes every time, that says what it was drawn from."""
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": path.stem}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Description": source})


def source(path: Path) -> str:
    """What an SVG of `save` says it was drawn from."""
    found = re.search(r"<dc:description>(.*?)</dc:description>", path.read_text(encoding="utf-8"))
    return found[1] if found else ""
