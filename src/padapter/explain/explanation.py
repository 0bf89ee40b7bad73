"""What an explanation is: arrays, and how they lie on the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from padapter.explain.rules import Array
from padapter.explain.views import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AttentionMap:
    """Where the heads of one attention module look, on the picture.

    A row of attention weights is that of the token that predicts the explained token (the mean over them if they are
    several). In modules without such a token it is a mean: in those that read a question with the picture, over the
    question's tokens; in image encoder and Q-Former, over all their tokens. What falls on tokens that are no patches
    (a class token, a question behind the picture) is not in the grids.

    Attributes:
        name: full name of the module.
        part: "decoder", "fusion", "vision" or "connector".
        cross: whether it reads the picture by cross-attention.
        layer: its number within its part, None if its name has none.
        views: the rectangles that the grids below lie on.
        plain: per view, (H, rows, columns): softmax attention.
        calibrated: per view, (H, rows, columns): the weights of the p-adapter; None where none is active.
        own: (H,), the share of the query nodes' own features beside the calibrated weights; None as above.
    """

    name: str
    part: str
    cross: bool
    layer: int | None
    views: tuple[View, ...]
    plain: tuple[Array, ...]
    calibrated: tuple[Array, ...] | None
    own: Array | None


@dataclass(frozen=True)
class Side:
    """How one model explains a text.

    Attributes:
        title: which model it is.
        answer: what the model itself answers, if it was asked.
        tokens: the explained tokens, K of them; one more, ``"not ..."``, where other answers count against them.
        log_probs: (K,), log-probability of each; of "not ..." minus that of the other answers.
        relevance: per view, (K, rows, columns): relevance of each patch for each token, >= 0.
        words: the tokens of the prompt, those of the picture left out; a question that an encoder of its own reads
            comes first, then what the decoder begins with.
        word_relevance: (K, words), relevance of each for each token, >= 0.
        attention: one per attention module that sees the picture.
        against: whether the last of ``tokens`` is "not ...".
    """

    title: str
    answer: str | None
    tokens: tuple[str, ...]
    log_probs: Array
    relevance: tuple[Array, ...]
    words: tuple[str, ...]
    word_relevance: Array
    attention: tuple[AttentionMap, ...]
    against: bool = False

    @property
    def token_log_probs(self) -> Array:
        """Log-probabilities of tokens alone: of all K, or all but "not ..."."""
        found: Array = self.log_probs[: len(self.log_probs) - self.against]
        return found


@dataclass(frozen=True)
class Explanation:
    """A picture, a text about it, and how one or two models explain it.

    Attributes:
        picture: RGB, upright, at its own resolution.
        prompt: what the models were given.
        text: the answer that is explained.
        views: the rectangles of the picture that the models see.
        sides: the base model and the adapted one, or one of them.
    """

    picture: Image.Image
    prompt: str
    text: str
    views: tuple[View, ...]
    sides: tuple[Side, ...]

    def on_picture(self, side: int = -1, token: int | None = None) -> Array:
        """Relevance per pixel of the picture.

        Args:
            side: which of ``sides``.
            token: which of its tokens; None for the sum of all.

        Returns:
            (height, width); the numbers of a view's patches are spread over their pixels, so that the whole sums to the
            relevance of all patches, less what lies in padding.
        """
        found = self.sides[side].relevance
        grids = [maps.sum(axis=0) if token is None else maps[token] for maps in found]
        return spread(self.views, grids, self.picture.size)

    def figure(self, *, layer: int | None = None) -> Figure:
        """The picture, relevance and attention as a matplotlib figure; see :func:`padapter.explain.figure.draw`."""
        from padapter.explain.figure import draw

        return draw(self, layer=layer)


def spread(views: tuple[View, ...], grids: list[Array] | tuple[Array, ...], size: tuple[int, int]) -> Array:
    """Numbers per patch (rows, columns), one grid per view, as one number per pixel (height, width).

    A patch hands its number to its pixels in equal parts; where views overlap, the parts add up.
    """
    width, height = size
    total = np.zeros((height, width))
    for view, grid in zip(views, grids, strict=True):
        left, top, right, bottom = view.box
        pixels = (right - left) / view.columns * ((bottom - top) / view.rows)
        total += view.on_picture(grid / pixels, width, height)
    return total
