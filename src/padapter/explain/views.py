"""Which part of a picture each patch of a model shows, measured through the model's own preprocessing.

A black, a white and a coloured picture of the same size go the way that the picture goes. Where black and white come
out different, the picture shows; elsewhere is padding. The coloured one has its column in red and its row in green, so
what comes out says where it came from. Whatever a processor does (pad, crop, squash, cut into tiles, normalise,
flatten), nothing about it has to be known; what is no such thing is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padapter.errors import UserError
from padapter.explain.rules import Array

#: Largest distance, in pixels of the model, between where a pixel comes from and a straight line through all of them.
_STRAIGHT = 1.5
#: Width and height of the smallest picture.
LEAST = 8
_OFFSETS, _TOP = 8, 254


@dataclass(frozen=True)
class View:
    """A rectangle of a picture, cut into patches.

    Attributes:
        box: left, top, right and bottom in pixels of the picture; beyond its edges where the model sees padding.
        rows: of patches.
        columns: of patches.
    """

    box: tuple[float, float, float, float]
    rows: int
    columns: int

    def coarser(self, side: int) -> View:
        """The same rectangle in squares of ``side`` x ``side`` patches."""
        return View(self.box, self.rows // side, self.columns // side)

    def on_picture(self, grid: Array, width: int, height: int) -> Array:
        """A number per patch as a number per pixel.

        Args:
            grid: (rows, columns).
            width: of the picture.
            height: of the picture.

        Returns:
            (height, width); 0 where the view does not reach. A pixel shared by several patches has their mean by area.
        """
        down, across = self._overlaps(width, height)
        pixels: Array = down.T @ grid @ across
        return pixels

    def coverage(self, width: int, height: int) -> Array:
        """(rows, columns), which share of each patch lies in a picture of this size; the rest is padding."""
        down, across = self._overlaps(width, height)
        left, top, right, bottom = self.box
        patch = (right - left) / self.columns * ((bottom - top) / self.rows)
        shares: Array = down.sum(axis=1)[:, None] * across.sum(axis=1)[None] / patch
        return shares

    def _overlaps(self, width: int, height: int) -> tuple[Array, Array]:
        """How far patches reach into pixels, in pixels: (rows, height) and (columns, width)."""
        left, top, right, bottom = self.box
        return _overlap(top, bottom, self.rows, height), _overlap(left, right, self.columns, width)


def measure_views(pixels_of: Callable[[Image.Image], Array], size: tuple[int, int], patch: int) -> list[View]:
    """Find out which rectangles of pictures of one size a model sees.

    Args:
        pixels_of: a picture as the model gets it, (T, 3, h, w): one view per entry, h and w multiples of ``patch``.
        size: (width, height) of the picture.
        patch: width and height of a patch, in pixels of the model.

    Returns:
        T views.

    Raises:
        UserError: if the picture is smaller than `LEAST`, or the model does something else to pictures than to crop,
            pad and resize them.
    """
    width, height = size
    if min(size) < LEAST:
        raise UserError(
            f"the picture is {width} x {height} pixels, too small to tell places in it: give one of {LEAST}."
        )
    black, white, *coloured = (pixels_of(Image.fromarray(colours)) for colours in _probes(width, height))
    if len({found.shape for found in (black, white, *coloured)}) > 1:
        raise UserError(
            "the model's processor makes of pictures of one size what differs in size; it cannot be followed."
        )
    places = np.mean(coloured, axis=0)
    return [
        _view(black[i], white[i], places[i], size, (black.shape[-2] // patch, black.shape[-1] // patch))
        for i in range(len(black))
    ]


def _probes(width: int, height: int) -> list[NDArray[np.uint8]]:
    """Black, white, and `_OFFSETS` pictures of places, each a part of a level brighter: finer than 8 bits."""
    shape = (height, width, 3)
    found = [np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)]
    for number in range(_OFFSETS):
        places = np.zeros(shape)
        places[..., 0] = np.linspace(0, _TOP, width)[None]
        places[..., 1] = np.linspace(0, _TOP, height)[:, None]
        found.append(np.floor(places + (number + 0.5) / _OFFSETS).astype(np.uint8))
    return found


def _view(black: Array, white: Array, places: Array, size: tuple[int, int], grid: tuple[int, int]) -> View:
    """One view from (3, h, w) of each probe."""
    contrast = white - black
    shows = (contrast > 0.9 * contrast.max(axis=(1, 2), keepdims=True)).all(axis=0)  # (h, w)
    if not contrast.max() > 0 or not shows.any():
        raise UserError("the model's processor makes black and white pictures alike; it cannot be followed.")
    level = 255 * (places - black) / np.where(shows, contrast, 1.0)
    share = np.where(shows, level / _TOP, np.nan)  # of the way from edge to edge
    across = _line(np.nanmean(np.where(shows.any(axis=0), share[0], 0.0), axis=0), shows.any(axis=0), size[0])
    down = _line(np.nanmean(np.where(shows.any(axis=1)[:, None], share[1], 0.0), axis=1), shows.any(axis=1), size[1])
    return View((across[0], down[0], across[1], down[1]), *grid)


def _line(share: Array, shows: NDArray[np.bool_], length: int) -> tuple[float, float]:
    """Where the first edge and the last edge of the model's pixels lie in a picture of some width (or height).

    Args:
        share: (n,), of the way from the middle of the first pixel of the picture to that of the last, per pixel.
        shows: (n,), whether the picture shows there at all.
        length: width or height of the picture.
    """
    centres = np.flatnonzero(shows) + 0.5
    source = share[shows] * (length - 1) + 0.5
    # Filters bend a line at the edges of a picture, so the middle counts, if there is one.
    cut = -(-len(centres) // 8)
    middle = slice(cut, len(centres) - cut) if len(centres) - 2 * cut >= 2 else slice(None)
    if len(centres[middle]) < 2:
        raise UserError("the model sees a strip of the picture that is one pixel wide; there is nothing to show.")
    slope, start = np.polyfit(centres[middle], source[middle], 1)
    bend = np.abs(source[middle] - (slope * centres[middle] + start)).max() if slope > 0 else np.inf
    if bend > _STRAIGHT * max(slope, length / 255):
        raise UserError(
            "the model's processor does more to pictures than to crop, pad and resize them (it may rotate or mirror "
            "them); where a patch came from cannot be told."
        )
    return float(start), float(slope * len(share) + start)


def _overlap(first: float, last: float, parts: int, length: int) -> Array:
    edges = np.linspace(first, last, parts + 1)
    pixels = np.arange(length)
    ends = np.minimum(edges[1:, None], pixels[None] + 1)
    overlap: Array = np.clip(ends - np.maximum(edges[:-1, None], pixels[None]), 0.0, None)
    return overlap
