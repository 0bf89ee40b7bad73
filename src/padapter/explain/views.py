"""Which part of a picture each patch of a model shows, measured through the model's own preprocessing.

A black, a white and a coloured picture of the same size go the way that the picture goes. Where black and white come
out different, the picture shows; elsewhere is padding. The coloured one has its column in red and its row in green, so
what comes out says where it came from. Whatever a processor does (pad, crop, squash, cut into tiles, normalise,
flatten into rows of patches), nothing about it has to be known; what is no such thing is refused.
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
#: Largest distance between a patch's middle and its place in a grid, in patches.
_LATTICE = 0.25
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


def measure_views(
    pixels_of: Callable[[Image.Image], Array], size: tuple[int, int], patch: int = 1
) -> list[View | None]:
    """Find out which rectangles of pictures of one size a model sees.

    Args:
        pixels_of: a picture as the model gets it, (T, 3, h, w): one view per entry, h and w multiples of ``patch``.
        size: (width, height) of the picture.
        patch: width and height of a patch, in pixels of the model.

    Returns:
        T views, None for those that show nothing of a picture.

    Raises:
        UserError: if the picture is smaller than `LEAST`, or the model does something else to pictures than to crop,
            pad and resize them.
    """
    black, white, *coloured = _seen(pixels_of, size, _probes(*size))
    places = np.mean(coloured, axis=0)
    shape = black.shape[-2] // patch, black.shape[-1] // patch
    return [
        _view(black[i], white[i], places[i], size, shape) if (white[i] > black[i]).any() else None
        for i in range(len(black))
    ]


def measure_rows(pixels_of: Callable[[Image.Image], Array], size: tuple[int, int]) -> Array:
    """Find out where the patches of pictures of one size lie that a model gets as rows of numbers.

    Which numbers of a row are red and which green is measured too: by a red picture and a green one.

    Args:
        pixels_of: a picture as the model gets it, (n, numbers): pixels of patch after patch, in any order.
        size: (width, height) of the picture.

    Returns:
        (n, 2), x and y of each patch's middle in pixels of the picture; NaN for rows that show nothing of it.

    Raises:
        UserError: as `measure_views`.
    """
    width, height = size
    pure = [np.full((height, width, 3), 255 * np.eye(3, dtype=np.uint8)[i], np.uint8) for i in (0, 1)]
    red, green, black, white, *coloured = _seen(pixels_of, size, [*pure, *_probes(width, height)])
    contrast = white - black
    shows = contrast > 0.5 * contrast.max()
    centres = np.full((len(black), 2), np.nan)
    for axis, (colour, length) in enumerate(((red, width), (green, height))):
        # Of this colour, and of no other: a grey picture would be of all.
        chosen = shows & (colour - black > 0.9 * contrast)
        level = 255 / _TOP * (np.mean(coloured, axis=0) - black) / np.where(chosen, contrast, 1.0)
        count = chosen.sum(axis=1)
        share = np.divide((level * chosen).sum(axis=1), count, out=np.full(len(black), np.nan), where=count > 0)
        centres[:, axis] = share * (length - 1) + 0.5
    return centres


def lattice(centres: Array) -> tuple[View, NDArray[np.int64], NDArray[np.int64]]:
    """The rectangle whose patches have these middles.

    Args:
        centres: (n, 2), x and y.

    Returns:
        The view, and row and column of each, (n,).

    Raises:
        UserError: if they are not those of a grid, every place taken once.
    """
    numbers, edges, regular = [], [], True
    for values in centres.T:
        gaps = np.diff(np.sort(values))
        wide = gaps > gaps.max(initial=0.0) / 2
        means = np.array([group.mean() for group in np.split(np.sort(values), np.flatnonzero(wide) + 1)])
        place = np.abs(values[:, None] - means[None]).argmin(axis=1)
        slope, start = np.polyfit(np.arange(len(means)) + 0.5, means, 1) if len(means) > 1 else (0.0, 0.0)
        regular &= slope > 0 and bool(np.abs(values - (slope * (place + 0.5) + start)).max() < _LATTICE * slope)
        numbers.append(place)
        edges.append((float(start), float(slope * len(means) + start), len(means)))
    (left, right, columns), (top, bottom, rows) = edges
    places = np.unique(numbers[1] * columns + numbers[0])
    if not regular or not len(places) == len(centres) == rows * columns:
        raise UserError(f"the picture's {len(centres)} patches do not make a grid of at least 2 x 2.")
    return View((left, top, right, bottom), rows, columns), numbers[1], numbers[0]


def _seen(
    pixels_of: Callable[[Image.Image], Array], size: tuple[int, int], probes: list[NDArray[np.uint8]]
) -> list[Array]:
    """What the model gets of the probes; the last are those of `_probes`."""
    if min(size) < LEAST:
        raise UserError(
            f"the picture is {size[0]} x {size[1]} pixels, too small to tell places in it: give one of {LEAST}."
        )
    found = [pixels_of(Image.fromarray(colours)) for colours in probes]
    if len({one.shape for one in found}) > 1:
        raise UserError(
            "the model's processor makes of pictures of one size what differs in size; it cannot be followed."
        )
    black, white = found[-_OFFSETS - 2], found[-_OFFSETS - 1]
    if not (white > black).any():
        raise UserError("the model's processor makes black and white pictures alike; it cannot be followed.")
    return found


def _probes(width: int, height: int) -> list[NDArray[np.uint8]]:
    """Black, white, and `_OFFSETS` pictures of places, each a part of a level brighter: finer than 8 bits."""
    shape = (height, width, 3)
    found = [np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)]
    for number in range(_OFFSETS):
        places = np.zeros(shape, np.uint8)
        for channel, length, line in ((0, width, np.s_[None, :]), (1, height, np.s_[:, None])):
            level = np.linspace(0, _TOP, length) + (number + 0.5) / _OFFSETS
            places[..., channel] = np.floor(level).astype(np.uint8)[line]
        found.append(places)
    return found


def _view(black: Array, white: Array, places: Array, size: tuple[int, int], grid: tuple[int, int]) -> View:
    """One view from (3, h, w) of each probe."""
    contrast = white - black
    shows = (contrast > 0.9 * contrast.max(axis=(1, 2), keepdims=True)).all(axis=0)  # (h, w)
    if not shows.any():
        raise UserError("the model's processor leaves no place with all three colours; it cannot be followed.")
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
