"""Where patches lie on a picture: measured boxes against formulas, and patches against what a changed pixel changes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from transformers import AutoProcessor

sys.path.insert(0, str(Path(__file__).parent.parent / "backbones"))

from tiny_blip import make_backbone
from tiny_image_text import PROCESSORS, TEMPLATE, build, tokenizer

from padapter.architectures import attention_sites
from padapter.backbones.image_text import ImageTextBackbone
from padapter.data.fit import fit
from padapter.errors import UserError
from padapter.explain import explain_answer
from padapter.explain.explanation import spread
from padapter.explain.reading import mixing_of, patches, read, side_of_squares
from padapter.explain.views import View, measure_views

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


def _idefics3_split():
    images = tf.Idefics3ImageProcessor(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, do_image_splitting=True
    )
    made = tokenizer()
    return tf.Idefics3Processor(
        image_processor=images, tokenizer=made, image_seq_len=4, chat_template=TEMPLATE.replace("IMAGE", "<image>")
    )


CASES = {
    "llava": (16, 16), "paligemma": (16, 16), "idefics3": (16, 16), "qwen2-vl": (16, 16), "qwen2-vl wide": (32, 8),
    "blip-2 (OPT)": (16, 16), "idefics3 split": (32, 16),
}  # fmt: skip


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    made, folder = {}, tmp_path_factory.mktemp("processor")

    def get(case):
        name = case.removesuffix(" wide").removesuffix(" split")
        if case not in made:
            processor = _idefics3_split() if case.endswith("split") else PROCESSORS[name]()
            if name.startswith("blip-2"):  # its processor works only once it has been saved and loaded
                processor.save_pretrained(folder)
                processor = AutoProcessor.from_pretrained(folder)
            made[case] = ImageTextBackbone(build(name), processor, name)
        return made[case]

    return get


@pytest.mark.parametrize("case", CASES)
def test_a_changed_patch_changes_its_own_token_and_no_other(backbones, case):
    """With no attention in the image encoder every patch goes its own way, up to the words of the first text layer."""
    backbone, size = backbones(case), CASES[case]
    for site in attention_sites(backbone.model):
        if site.part == "vision":
            for parameter in site.output().parameters():
                torch.nn.init.zeros_(parameter)
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    before = read(backbone, Image.fromarray(pixels), "what color is it ?", "red")
    layout = before.layout
    side = 1 if layout.family.reads == "queries" else side_of_squares(layout)
    tiles = before.records[0].plain.weights.shape[0]
    assert tiles == len(layout.views) == (3 if case.endswith("split") else 1)
    view = layout.views[0]
    left, top, right, bottom = view.box
    # Next to each other, one below the other, the other end of the first row, the last.
    for row, column in {(0, 1), (1, 0), (0, view.columns - 1), (view.rows - 1, view.columns - 1)}:
        changed = pixels.copy()
        across, down = (right - left) / view.columns, (bottom - top) / view.rows
        x, y = round(left + column * across), round(top + row * down)
        changed[y : y + round(down), x : x + round(across)] ^= 255
        after = read(backbone, Image.fromarray(changed), "what color is it ?", "red", layout)
        # the first view; a whole picture besides tiles sees every change
        moved = _moved(before.records[0], after.records[0], tile=0)
        grid = patches(layout, 0, moved.astype(float))
        expected = np.zeros((view.rows, view.columns))
        expected[row, column] = 1
        np.testing.assert_array_equal(grid, expected)
        if layout.family.reads != "inside":
            continue
        texts = [next(r for r in x.records if r.site.part == "decoder") for x in (before, after)]
        tokens = _moved(*texts)[layout.columns][: view.rows * view.columns // side**2]
        assert tokens.reshape(view.rows // side, -1)[row // side, column // side]
        assert tokens.sum() == 1
        mixing = mixing_of(layout, 0, len(moved))
        np.testing.assert_allclose(mixing.sum(axis=1), 1)
        np.testing.assert_array_equal(mixing @ moved > 0, tokens)


def _moved(before, after, tile=0):
    """Which tokens (N,) have other values."""
    one, other = (record.call.value[tile].detach() for record in (before, after))
    return ((one - other).abs().amax(dim=(0, 2)) > 1e-4).numpy()


@pytest.mark.parametrize("case", CASES)
def test_every_family_is_explained(backbones, case):
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    found = explain_answer(backbones(case), picture, "what color is it ?", "red blue", layers=[1])
    side = found.sides[0]
    assert side.tokens == ("red", "blue")
    for view, maps in zip(found.views, side.relevance, strict=True):
        assert maps.shape == (2, view.rows, view.columns)
        assert maps.min() >= 0
    assert sum(maps.sum() for maps in side.relevance) > 0
    pixels = found.on_picture()
    assert pixels.shape == (20, 30)
    covered = sum((m.sum(0) * v.coverage(30, 20)).sum() for m, v in zip(side.relevance, found.views, strict=True))
    np.testing.assert_allclose(pixels.sum(), covered)
    assert "<image>" not in side.words
    assert "what" in side.words
    assert {one.layer for one in side.attention} == {1}
    for one in side.attention:
        total = sum(grid.sum(axis=(1, 2)) for grid in one.plain)
        assert (total <= (len(found.views) if one.part == "vision" else 1) + 1e-5).all()


def test_other_families_are_refused(backbones):
    backbone = backbones("llava")
    backbone.base_model.config.model_type = "other"
    try:
        with pytest.raises(UserError, match=r"models of type 'other'.*knows blip, llava"):
            explain_answer(backbone, Image.new("RGB", (16, 16)), "what", "red")
    finally:
        backbone.base_model.config.model_type = "llava"
