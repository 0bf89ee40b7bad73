"""An explanation as a matplotlib figure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from padapter.explain.explanation import AttentionMap, Explanation, Side, spread
from padapter.explain.rules import Array
from padapter.explain.views import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEAT: dict[str, Any] = {"cmap": "inferno", "alpha": 0.65, "vmin": 0.0}
_CELL = 3.2
_SIDE = 1000  # pixels of the picture in a panel; more would take long and not be seen
_NO_MORE = 60  # letters of an answer above its panel
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

    explanation = _smaller(explanation)
    top: list[_Cell] = [("picture", None)]
    top += [(_relevance(side), explanation.on_picture(i)) for i, side in enumerate(explanation.sides)]
    below = _attention(explanation, layer)
    columns, rows = max(len(top), len(below)), 1 + bool(below)
    shape = _shape(explanation)
    figure = Figure(figsize=(_CELL * columns, (_CELL * shape + 0.45) * rows + 1.0), layout="constrained")
    figure.suptitle(f"“{explanation.text}”  after  “{explanation.prompt.strip()}”", fontsize=11, wrap=True)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, cells in zip(axes, (top, below), strict=False):
        for axis, cell in zip(line, cells, strict=False):
            _draw(axis, explanation, *cell)
    _scale(figure, axes, explanation)
    return figure


def _relevance(side: Side) -> str:
    if side.answer is None:
        return f"{side.title}: relevance"
    said = side.answer if len(side.answer) <= _NO_MORE else f"{side.answer[:_NO_MORE]}..."
    return f"{side.title} (says “{said}”): relevance"


def _scale(figure: Figure, axes: Any, explanation: Explanation) -> None:
    """What colours mean, as they look on this picture: laid over its mean colour."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    behind = np.asarray(explanation.picture, dtype=float).reshape(-1, 3).mean(axis=0) / 255
    colours = colormaps[_HEAT["cmap"]](np.linspace(0, 1, 256))[:, :3]
    mixed = ListedColormap(_HEAT["alpha"] * colours + (1 - _HEAT["alpha"]) * behind)
    bar = figure.colorbar(ScalarMappable(cmap=mixed), ax=axes, location="bottom", shrink=0.3, aspect=30, pad=0.03)
    bar.set_ticks([0, 1], labels=["0", "most of each map"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=9)


def _smaller(explanation: Explanation) -> Explanation:
    """The same with a picture whose longer side is at most `_SIDE`."""
    width, height = explanation.picture.size
    if max(width, height) <= _SIDE:
        return explanation
    size = max(1, round(width * _SIDE / max(width, height))), max(1, round(height * _SIDE / max(width, height)))
    across, down = size[0] / width, size[1] / height

    def scaled(views: tuple[View, ...]) -> tuple[View, ...]:
        boxes = [np.multiply(view.box, (across, down, across, down)).tolist() for view in views]
        return tuple(View(tuple(box), view.rows, view.columns) for box, view in zip(boxes, views, strict=True))

    sides = tuple(
        replace(side, attention=tuple(replace(one, views=scaled(one.views)) for one in side.attention))
        for side in explanation.sides
    )
    picture = explanation.picture.resize(size)
    return replace(explanation, picture=picture, views=scaled(explanation.views), sides=sides)


def _shape(explanation: Explanation) -> float:
    """Height by width of a panel: the picture's own, but not so narrow that patches could not be seen."""
    width, height = explanation.picture.size
    return float(np.clip(height / width, 0.25, 4.0))


def _draw(axis: Axes, explanation: Explanation, title: str, heat: Array | None) -> None:
    width, height = explanation.picture.size
    aspect = _shape(explanation) * width / height  # 1 unless the picture is stretched
    if heat is None and not np.isclose(aspect, 1):
        title += ", stretched here"
    axis.imshow(explanation.picture, interpolation="nearest", aspect=aspect)
    if heat is not None:
        unseen = spread(explanation.views, [np.ones((v.rows, v.columns)) for v in explanation.views], heat.shape[::-1])
        axis.imshow(np.ma.masked_where(unseen == 0, heat), interpolation="nearest", aspect=aspect, **_HEAT)
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
