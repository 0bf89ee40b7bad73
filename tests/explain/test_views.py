"""Where patches lie on a picture: measured boxes against formulas, and patches against what a changed pixel changes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "backbones"))

from tiny_blip import make_backbone

from padapter.data.fit import fit
from padapter.errors import UserError
from padapter.explain.explanation import spread
from padapter.explain.reading import read
from padapter.explain.views import View, lattice, measure_rows, measure_views

SIZES = [(640, 480), (200, 333), (64, 64), (37, 20), (1000, 90), (8, 9)]


def box_by_formula(how, size, side):
    """The square of the model in pixels of the picture."""
    width, height = size
    if how == "squash":
        return 0, 0, width, height
    if how == "crop":
        edge = min(size)
        return (width - edge) / 2, (height - edge) / 2, (width + edge) / 2, (height + edge) / 2
    scale = min(side / width, side / height)
    inner = round(width * scale), round(height * scale)
    left, top = (side - inner[0]) // 2, (side - inner[1]) // 2
    across, down = width / inner[0], height / inner[1]
    return -left * across, -top * down, (side - left) * across, (side - top) * down


@pytest.mark.parametrize("how", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_measured_boxes_are_those_of_the_formulas(size, how):
    def pixels_of(picture):
        made = np.asarray(fit(picture, (96, 96), how, fill=(122, 116, 104)), dtype=float).transpose(2, 0, 1)
        return (made / 255 - 0.48)[None] / 0.27

    (view,) = measure_views(pixels_of, size, 16)
    expected = box_by_formula(how, size, 96)
    assert (view.rows, view.columns) == (6, 6)
    np.testing.assert_allclose(view.box, expected, atol=0.004 * max(size) + 0.1)


@pytest.mark.parametrize("resize", [None, "squash", "crop", "pad"])
def test_through_the_backbones_own_preprocessing(resize):
    backbone = make_backbone()
    if resize is not None:
        backbone.preprocess(resize=resize)
    picture = Image.new("RGB", (50, 30), (200, 40, 40))
    (view,) = read(backbone, picture, "what is it ?", "red").layout.views
    np.testing.assert_allclose(view.box, box_by_formula(resize or "squash", (50, 30), 16), atol=0.2)


@pytest.mark.parametrize("how", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(640, 480), (37, 60)], ids=str)
def test_patches_that_come_as_rows(size, how):
    """In any order, their numbers in any order, with rows of nothing behind them and two frames of everything."""
    rng = np.random.default_rng(0)
    rows, columns, patch = 5, 7, 4
    order, inside = rng.permutation(rows * columns), rng.permutation(2 * 3 * patch**2)

    def pixels_of(picture):
        made = np.asarray(fit(picture, (columns * patch,) * 2, how, fill=(122, 116, 104)), dtype=float) / 255
        made = (made[: rows * patch] - 0.4) / np.array([0.3, 0.25, 0.2])
        cut = made.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
        return np.concatenate([np.repeat(cut, 2, axis=1)[:, inside][order], np.zeros((3, len(inside)))])

    centres = measure_rows(pixels_of, size)
    assert np.isnan(centres[-3:]).all()
    left, top, right, bottom = box_by_formula(how, size, columns * patch)
    places = np.stack(np.divmod(order, columns), axis=1)
    expected = (left, top) + (places[:, ::-1] + 0.5) * ((right - left) / columns, (bottom - top) / columns)
    shown = np.isfinite(centres[:-3]).all(axis=1)
    whole = (expected > 0.1 * max(size)).all(axis=1) & (expected < np.array(size) - 0.1 * max(size)).all(axis=1)
    assert shown[whole].all()
    np.testing.assert_allclose(centres[:-3][whole], expected[whole], atol=0.02 * max(size))
    if how != "pad":
        view, row, column = lattice(centres[:-3])
        assert (view.rows, view.columns) == (rows, columns)
        np.testing.assert_array_equal(row * columns + column, order)
        down = bottom - (bottom - top) * (columns - rows) / columns
        np.testing.assert_allclose(view.box, (left, top, right, down), atol=0.03 * max(size))


def test_what_is_no_grid_is_refused():
    grid = np.stack(np.meshgrid(np.arange(3.0), np.arange(2.0)), axis=-1).reshape(-1, 2)
    assert (lattice(grid)[0].rows, lattice(grid)[0].columns) == (2, 3)
    # one is missing, one is there twice, a single row, uneven columns
    for wrong in (grid[:-1], np.concatenate([grid, grid[:1]]), grid[:3], grid**3):
        with pytest.raises(UserError, match="do not make a grid"):
            lattice(wrong)


def test_numbers_on_the_picture_keep_their_sum():
    view, grid = View((-3.0, 2.0, 17.0, 10.0), 2, 4), np.arange(8.0).reshape(2, 4)
    pixels = spread((view,), [grid], (14, 12))
    assert pixels.shape == (12, 14)
    covered = view.coverage(14, 12)
    np.testing.assert_allclose(covered, [[0.4, 1.0, 1.0, 0.4]] * 2)
    np.testing.assert_allclose(pixels.sum(), (grid * covered).sum())
    np.testing.assert_array_equal(pixels[:2], 0)
    assert pixels[3, 4] == grid[0, 1] / 20  # a patch of 5 x 4 pixels
    np.testing.assert_allclose(view.on_picture(grid, 14, 12)[3, :3], [0, 0, 1])


def test_what_cannot_be_followed_is_refused():
    with pytest.raises(UserError, match="too small"):
        measure_views(lambda picture: np.zeros((1, 3, 16, 16)), (7, 20), 8)
    with pytest.raises(UserError, match="black and white pictures alike"):
        measure_views(lambda picture: np.zeros((1, 3, 16, 16)), (20, 20), 8)

    def mirrored(picture):
        return np.asarray(fit(picture, (16, 16)), dtype=float).transpose(2, 0, 1)[None, :, :, ::-1]

    with pytest.raises(UserError, match="mirror"):
        measure_views(mirrored, (20, 20), 8)
