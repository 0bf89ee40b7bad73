"""An explanation as a matplotlib figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from padapter.explain.explanation import AttentionMap, Explanation, spread
from padapter.explain.rules import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEAT: dict[str, Any] = {"cmap": "inferno", "alpha": 0.65, "vmin": 0.0}
_CELL = 3.2
_Cell = tuple[str, "Array | None"]


def draw(explanation: Explanation, *, layer: int | None = None) -> Figure:
    """Two rows: the picture and the relevance of each side; then attention, mean over heads, of one layer of the text.

    Args:
        explanation: what to draw.
        layer: the layer whose attention is shown; None for the last one whose attention was kept.

    Returns:
        The figure, which belongs to no window.
    """
    from matplotlib.figure import Figure

    top: list[_Cell] = [("picture", None)]
    top += [(f"{side.title}: relevance", explanation.on_picture(i)) for i, side in enumerate(explanation.sides)]
    below = _attention(explanation, layer)
    columns, rows = max(len(top), len(below)), 1 + bool(below)
    width, height = explanation.picture.size
    shape = np.clip(height / width, 0.4, 2.0)
    figure = Figure(figsize=(_CELL * columns, (_CELL * shape + 0.35) * rows + 0.75), layout="constrained")
    figure.suptitle(f"“{explanation.text}”  after  “{explanation.prompt.strip()}”", fontsize=11, wrap=True)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, cells in zip(axes, (top, below), strict=False):
        for axis, cell in zip(line, cells, strict=False):
            _draw(axis, explanation, *cell)
    return figure


def _draw(axis: Axes, explanation: Explanation, title: str, heat: Array | None) -> None:
    axis.imshow(explanation.picture, interpolation="nearest")
    if heat is not None:
        unseen = spread(explanation.views, [np.ones((v.rows, v.columns)) for v in explanation.views], heat.shape[::-1])
        axis.imshow(np.ma.masked_where(unseen == 0, heat), interpolation="nearest", **_HEAT)
    axis.set_title(title, fontsize=9)


def _attention(explanation: Explanation, layer: int | None) -> list[_Cell]:
    cells: list[_Cell] = []
    for side in explanation.sides:
        one = _of_layer(side.attention, layer)
        if one is None:
            continue
        for kind, grids in (("attention", one.plain), ("calibrated attention", one.calibrated)):
            if grids is not None:
                means = [grid.mean(axis=0) for grid in grids]
                heat = spread(one.views, means, explanation.picture.size)
                cells.append((f"{side.title}: {kind}, layer {one.layer}", heat))
    return cells


def _of_layer(attention: tuple[AttentionMap, ...], layer: int | None) -> AttentionMap | None:
    """The last module of the text, or else of any part, in a layer."""
    found = [one for one in attention if layer is None or one.layer == layer]
    return next((one for one in reversed(found) if one.part == "decoder"), found[-1] if found else None)
