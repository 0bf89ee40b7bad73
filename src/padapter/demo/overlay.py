"""A relevance map over its picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from padapter.explain import Explanation, View
from padapter.explain.explanation import spread
from padapter.explain.rules import Array

#: The longer side of a picture that is shown, in pixels; a larger one is made smaller.
SIDE = 1600
#: Smaller pictures are shown larger, a whole number of times, each pixel as a square.
LEAST = 512
_UNSEEN = (128, 128, 128)


def relevance_map(explanation: Explanation, token: int | None = None) -> tuple[Image.Image, Array]:
    """The picture as it is shown, and relevance per pixel of it.

    Args:
        explanation: of one model, its last side.
        token: which token's; None for the sum of all.

    Returns:
        The picture, no larger than `SIDE` and hardly smaller than `LEAST`, and (height, width): relevance as a share of
        its highest value, NaN where the model sees nothing of the picture.
    """
    picture = explanation.picture
    shown = picture.resize(
        [side * max(1, LEAST // max(picture.size)) for side in picture.size], Image.Resampling.NEAREST
    )
    shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    across, down = (shown.size[axis] / picture.size[axis] for axis in (0, 1))
    views = tuple(
        View((left * across, top * down, right * across, bottom * down), view.rows, view.columns)
        for view in explanation.views
        for left, top, right, bottom in [view.box]
    )
    found = explanation.sides[-1].relevance
    grids = [maps.sum(axis=0) if token is None else maps[token] for maps in found]
    heat = spread(views, grids, shown.size)
    seen = spread(views, [np.ones((view.rows, view.columns)) for view in views], shown.size)
    top = heat.max()
    return shown, np.where(seen > 0, heat / top if top > 0 else 0.0, np.nan)


def overlay(explanation: Explanation, *, token: int | None = None, strength: float = 0.6) -> Image.Image:
    """A relevance map over its picture, at the picture's own resolution (within `LEAST` and `SIDE`).

    Bright pixels are relevant, dark ones are not; what the model does not see is grey.

    Args:
        explanation: of one model, its last side.
        token: which token's relevance; None for the sum of all.
        strength: how much of the picture the colours hide, in [0, 1].

    Returns:
        RGB.
    """
    from matplotlib import colormaps

    picture, share = relevance_map(explanation, token)
    known = np.nan_to_num(share)
    colours = np.where(np.isnan(share)[..., None], _UNSEEN, 255 * colormaps["inferno"](known)[..., :3])
    mixed = (1 - strength) * np.asarray(picture, dtype=np.float64) + strength * colours
    return Image.fromarray(mixed.round().astype(np.uint8))
