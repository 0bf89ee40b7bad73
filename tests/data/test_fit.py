"""Pictures of any shape get the size that a model sees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from padapter.data.fit import RESIZES, fit
from padapter.options import RESIZES as CHOICES

RED, BLUE = (255, 0, 0), (0, 0, 255)


def halves(width, height):
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


@pytest.mark.parametrize("how", RESIZES)
@settings(max_examples=20, deadline=None)
@given(size=st.tuples(st.integers(1, 90), st.integers(1, 90)))
@example(size=(1, 1))
@example(size=(1, 20_000))
@example(size=(20_000, 1))
def test_the_size_is_always_right(how, size):
    found = fit(Image.new("RGB", size, RED), (32, 32), how, fill=BLUE)
    assert (found.mode, found.size) == ("RGB", (32, 32))
    colours = {colour for _, colour in found.getcolors()}
    assert colours == ({RED, BLUE} if how == "pad" and size[0] != size[1] and _pads(size) else {RED})


def _pads(size):
    """Whether a picture scaled to 32 px is at least one pixel short on its other side."""
    return round(32 * min(size) / max(size)) < 32


def test_what_is_seen_of_a_wide_picture():
    wide = halves(96, 32)
    squashed, cropped, padded = (np.asarray(fit(wide, (32, 32), how, fill=(9, 9, 9))) for how in CHOICES)
    for seen in (squashed, cropped):
        assert seen[16, 2].tolist() == list(RED)
        assert seen[16, -3].tolist() == list(BLUE)
    # cropping keeps the middle third, in which pixels are not stretched
    edge = np.asarray(halves(32, 32))
    assert np.array_equal(cropped, edge)
    assert (padded[:10] == 9).all()
    assert (padded[-10:] == 9).all()
    assert padded[16, 2].tolist() == list(RED)
    assert (padded != 9).any(axis=(1, 2)).sum() == 11


def test_a_picture_of_the_right_size_is_left_alone():
    image = halves(32, 32)
    assert all(fit(image, (32, 32), how) is image for how in RESIZES)


def test_the_options_know_all_ways():
    assert tuple(RESIZES) == CHOICES
