"""An explanation as one HTML page: numbers in JSON, drawn by a small script; nothing is loaded from anywhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from padapter.explain.explanation import AttentionMap, Explanation, Side
from padapter.explain.rules import Array
from padapter.explain.views import View
from padapter.pages import render_page

#: Numbers of attention in a page, one byte each; beyond it grids are made coarser.
NUMBERS = 3_000_000
#: The longer side of the picture in a page, in pixels; a larger one is made smaller.
SIDE = 2048
_EXACT = 128 * 128


def render(explanation: Explanation) -> str:
    """The page. Text is escaped, also within the script's data: nothing in a prompt becomes HTML."""
    data = json.dumps(content(explanation), separators=(",", ":"), ensure_ascii=True)
    script = resources.files(__package__).joinpath("assets").joinpath("page.js").read_text(encoding="utf-8")
    return render_page(
        "padapter.explain",
        page=explanation,
        layers=[_label(one) for one in _both(explanation)],
        data=Markup(data.replace("<", "\\u003c")),
        script=Markup(script),
    )


def content(explanation: Explanation) -> dict[str, Any]:
    """What the script draws.

    Grids are one byte per patch, as a share of ``top``, and base64: of a side's relevance (tokens, rows, columns), of
    attention (heads, rows, columns), each behind the others in the order of the views.
    """
    modules = list(_both(explanation))
    total = sum(grid.size for module in modules for one in module for grid in (*one.plain, *(one.calibrated or ())))
    factor = 1
    while total / factor**2 > NUMBERS:
        factor *= 2
    return {
        "picture": _picture(explanation.picture),
        "size": explanation.picture.size,
        "views": [_view(view) for view in explanation.views],
        "sides": [_side(explanation, side) for side in explanation.sides],
        "modules": [_module(explanation, module, factor) for module in modules],
    }


def _both(explanation: Explanation) -> list[tuple[AttentionMap, ...]]:
    """The same module of every side, in the order of the first."""
    by_name = [{one.name: one for one in side.attention} for side in explanation.sides]
    return [tuple(named[name] for named in by_name if name in named) for name in by_name[0]]


def _label(module: Sequence[AttentionMap]) -> str:
    first = module[0]
    places = {"decoder": "text", "vision": "image encoder", "connector": "connector"}
    place = places.get(first.part, "question")  # its encoder, and what joins it with the picture
    kind = "reads the picture" if first.cross else "among its tokens"
    if first.part == "fusion" and not first.cross:
        kind = "reads the picture and itself"
    return f"{place}, layer {first.layer}, {kind}"


def _module(explanation: Explanation, module: Sequence[AttentionMap], factor: int) -> dict[str, Any]:
    panes = []
    for side, one in zip(explanation.sides, module, strict=True):
        kinds = (("attention", one.plain, None), ("calibrated attention", one.calibrated, one.own))
        for kind, grids, own in kinds:
            if grids is not None:
                shown = _bytes([_pooled(grid, factor) for grid in grids])
                sums = _sums(one.views, grids, explanation.picture.size)
                panes.append({"title": side.title, "kind": kind, **shown, **sums, **_own(own)})
    return {
        "label": _label(module),
        "name": module[0].name,
        "heads": len(module[0].plain[0]),
        "views": [_view(_pooled_view(view, factor)) for view in module[0].views],
        "panes": panes,
    }


def _own(own: Array | None) -> dict[str, Any]:
    return {} if own is None else {"own": [_short(value) for value in own]}


def _sums(views: Sequence[View], grids: Sequence[Array], size: tuple[int, int]) -> dict[str, Any]:
    """What of each map lies on the picture, and what on padding."""
    shares = [view.coverage(*size) for view in views]
    on = np.sum([(grid * share).sum(axis=(1, 2)) for grid, share in zip(grids, shares, strict=True)], axis=0)
    off = np.sum([(grid * (1 - share)).sum(axis=(1, 2)) for grid, share in zip(grids, shares, strict=True)], axis=0)
    return {"sums": [_short(value) for value in on], "padding": [_short(value) for value in off]}


def _side(explanation: Explanation, side: Side) -> dict[str, Any]:
    return {
        "title": side.title,
        "tokens": list(side.tokens),
        "probabilities": _probabilities(side),
        "probability": _short(float(np.exp(side.token_log_probs.sum()))),
        "words": list(side.words),
        "wordRelevance": [[_short(value) for value in row] for row in side.word_relevance],
        **_sums(explanation.views, side.relevance, explanation.picture.size),
        **_bytes(side.relevance),
    }


def _probabilities(side: Side) -> list[float | None]:
    """Of each token; None for "not ...", whose number is minus a log-probability and is no token's."""
    found: list[float | None] = [_short(float(np.exp(value))) for value in side.token_log_probs]
    return [*found, None] if side.against else found


def _bytes(grids: Sequence[Array]) -> dict[str, Any]:
    """Grids (n, rows, columns) as bytes, and per map the number that 255 stands for."""
    flat = np.concatenate([grid.reshape(len(grid), -1) for grid in grids], axis=1)  # (n, patches)
    top = flat.max(axis=1, initial=0.0)
    share = np.divide(flat, top[:, None], out=np.zeros_like(flat), where=top[:, None] > 0)
    code = base64.b64encode((share * 255).round().astype(np.uint8).tobytes()).decode("ascii")
    return {"top": [_short(value) for value in top], "data": code}


def _pooled(grid: Array, factor: int) -> Array:
    """Sums over squares of patches; what is left over at the edges is padded with nothing."""
    if factor == 1:
        return grid
    heads, rows, columns = grid.shape
    padded = np.pad(grid, ((0, 0), (0, -rows % factor), (0, -columns % factor)))
    squares = padded.reshape(heads, padded.shape[1] // factor, factor, padded.shape[2] // factor, factor)
    summed: Array = squares.sum(axis=(2, 4))
    return summed


def _pooled_view(view: View, factor: int) -> View:
    """The view that `_pooled` grids lie on: padded at the right and at the bottom like them."""
    left, top, right, bottom = view.box
    rows, columns = -(-view.rows // factor), -(-view.columns // factor)
    across, down = (right - left) / view.columns * factor, (bottom - top) / view.rows * factor
    return View((left, top, left + columns * across, top + rows * down), rows, columns)


def _view(view: View) -> dict[str, Any]:
    return {"box": [round(edge, 2) for edge in view.box], "rows": view.rows, "columns": view.columns}


def _picture(picture: Image.Image) -> str:
    shown = picture.copy()
    shown.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    exact = shown.width * shown.height <= _EXACT
    shown.save(stream, "PNG") if exact else shown.save(stream, "JPEG", quality=88)
    return f"data:image/{'png' if exact else 'jpeg'};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _short(value: float) -> float:
    return float(f"{value:.4g}")
