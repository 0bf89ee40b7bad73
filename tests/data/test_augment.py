"""Operations on training pictures: always RGB of the right size, drawn from seed, epoch and row, and as documented."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from padapter.data.augment import (
    OPERATIONS,
    PUBLISHED,
    RANDAUGMENT,
    Augmentation,
    Chance,
    mirror_word,
    parse_augmentation,
)
from padapter.data.augment.geometry import GREY, Crop
from padapter.data.fit import fit
from padapter.errors import UserError

SIDE = 24
sizes = st.tuples(st.integers(1, 70), st.integers(1, 70))
seeds = st.integers(0, 2**32)


def picture(size, seed=0):
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def square(image):
    return fit(image, (SIDE, SIDE))


def same(one, other):
    return one.size == other.size and one.tobytes() == other.tobytes()


def parsed(text) -> Augmentation:
    found = parse_augmentation(text)
    assert found is not None
    return found


def always(name) -> Augmentation:
    """The operation with probability 1 at full strength where it has one."""
    return Augmentation(((name, OPERATIONS[name].at_level(10)),))


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=15, deadline=None)
@given(size=sizes, seed=seeds)
@example(size=(1, 1), seed=0)
@example(size=(1, 3000), seed=1)
@example(size=(3000, 1), seed=2)
def test_the_result_is_rgb_of_the_asked_size(name, size, seed):
    for augmentation in (always(name), parsed(name)):
        found = augmentation(picture(size), Chance(seed, 0, 0), square)
        assert (found.mode, found.size) == ("RGB", (SIDE, SIDE))
        free = augmentation(picture(size), Chance(seed, 0, 0))  # a model whose processor resizes by itself
        assert free.mode == "RGB"
        assert min(free.size) >= 1
        assert OPERATIONS[name].before_resizing or free.size == size


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=10, deadline=None)
@given(size=sizes, seed=seeds)
def test_probability_0_is_identity(name, size, seed):
    image = picture(size)
    assert same(parsed(f"{name}:p=0")(image, Chance(seed, 0, 0), square), square(image))


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - {"identity", "randaugment"}))
def test_probability_1_changes_the_picture(name):
    image = ImageOps.scale(picture((8, 6)), 5).point(lambda value: 40 + value // 2)
    assert not same(always(name)(image, Chance(0, 0, 0)), image)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, epoch=st.integers(0, 99), row=st.integers(0, 2**40))
def test_the_same_seed_epoch_and_row_draw_the_same(seed, epoch, row):
    image, augmentation = picture((40, 30)), parsed("crop,flip-all,randaugment,rotate,brightness,shift-x")
    first = augmentation(image, Chance(seed, epoch, row), square)
    assert same(augmentation(image, Chance(seed, epoch, row), square), first)


def test_seed_epoch_and_row_each_make_a_difference():
    image, augmentation = picture((400, 300)), parsed("crop")
    visits = [(s, e, r) for s in range(3) for e in range(3) for r in range(3)]
    assert len({augmentation(image, Chance(*visit)).tobytes() for visit in visits}) == len(visits)


def test_what_is_drawn_is_known():
    """The numbers of every earlier run: they must not change from version to version."""
    chance = Chance(42, 1, 7)
    assert [round(chance.uniform(), 6) for _ in range(3)] == [0.579429, 0.30938, 0.688631]
    assert Crop().region((640, 480), Chance(42, 1, 7)) == (30, 17, 591, 479)


def test_regions_are_those_of_a_random_resized_crop():
    """Area and proportions spread evenly (proportions in the logarithm) where the picture leaves room for all."""
    size, crop = (4000, 4000), Crop(scale=0.05)
    boxes = np.array([crop.region(size, Chance(0, 0, row)) for row in range(4000)], dtype=float)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= 4000).all()
    ratio = np.log(width / height)
    assert abs(ratio).max() <= np.log(4 / 3) + 1e-2
    # Only large regions can fail to fit; below 3/4 of the area, all do, and area and ratio are uniform.
    area = width * height / 4000**2
    assert 0.05 <= area.min() < 0.06
    small = area[area < 0.75]
    assert np.histogram(small, bins=7, range=(0.05, 0.75))[0].std() / len(small) * 7 < 0.12
    inside = np.histogram(ratio[area < 0.75], bins=6, range=(-np.log(4 / 3), np.log(4 / 3)))[0]
    assert inside.std() / inside.mean() < 0.12
    # Places are even too: the middle of what is left over.
    room = 4000 - width
    assert abs((boxes[:, 0] / np.maximum(room, 1)).mean() - 0.5) < 0.03


def test_regions_of_extreme_pictures_are_in_their_middle():
    assert Crop().region((1, 1), Chance(0, 0, 0)) == (0, 0, 1, 1)
    assert Crop().region((3, 900), Chance(0, 0, 0)) == (0, 448, 3, 452)
    assert Crop().region((900, 3), Chance(0, 0, 0)) == (448, 0, 452, 3)


def test_moves_are_exact():
    """One bright pixel on the published side: where it goes, and the grey that follows."""
    image = Image.new("RGB", (224, 224))
    image.putpixel((100, 60), (255, 255, 255))

    def bright(text):
        values = np.asarray(parsed(text)(image, Chance(3, 0, 0)).convert("L")).astype(int)
        y, x = np.unravel_index(np.where(values == 255, 255, 0).argmax(), values.shape)
        return int(x), int(y), values

    x, y, values = bright("shift-x:pixels=7:p=1")
    assert (abs(x - 100), y) == (7, 60)
    assert (values == GREY[0]).sum() == 7 * 224
    x, y, values = bright("shift-y:pixels=7:p=1")
    assert (x, abs(y - 60)) == (100, 7)
    x, y, _ = bright("flip-all:p=1")
    assert (x, y) == (123, 60)
    sheared = parsed("shear-x:amount=0.2:p=1")(image, Chance(3, 0, 0))
    rows, columns = np.nonzero(np.asarray(sheared.convert("L")) > GREY[0])
    assert set(rows.tolist()) == {60}
    assert (abs(columns - 100) - 12.1 < 1.1).all()  # 0.2 x 60.5
    turned = np.asarray(parsed("rotate:degrees=90:p=1")(image, Chance(3, 0, 0)).convert("L"))
    y, x = np.unravel_index(turned.argmax(), turned.shape)
    assert (int(x), int(y)) in {(60, 123), (163, 100)}


def test_shifts_grow_with_the_picture():
    image = Image.new("RGB", (448, 448))
    found = np.asarray(parsed("shift-x:pixels=5:p=1")(image, Chance(0, 0, 0)).convert("L"))
    assert (found == GREY[0]).sum() == 10 * 448


def test_levels_are_the_published_ones():
    levels = {name: OPERATIONS[name].at_level(5).settings() for name in RANDAUGMENT}
    assert levels["rotate"] == {"p": 1, "degrees": 15}
    assert levels["shear-x"] == levels["shear-y"] == {"p": 1, "amount": 0.15}
    assert levels["shift-x"] == levels["shift-y"] == {"p": 1, "pixels": 5}
    # 0.1 + 1.8 x 5/10 = 1: RandAugment(2, 5) as published never changes brightness or sharpness.
    assert levels["brightness"] == levels["sharpness"] == {"p": 1, "factor": 1}
    assert OPERATIONS["brightness"].at_level(10).settings()["factor"] == pytest.approx(1.9)
    assert OPERATIONS["sharpness"].at_level(0).settings()["factor"] == pytest.approx(0.1)
    assert OPERATIONS["rotate"].at_level(7).settings()["degrees"] == pytest.approx(21)
    assert len(RANDAUGMENT) == 10


def test_colours_are_pillows():
    image = picture((20, 20))
    expected = {
        "autocontrast": ImageOps.autocontrast(image),
        "equalize": ImageOps.equalize(image),
        "brightness:factor=0.4": ImageEnhance.Brightness(image).enhance(0.4),
        "sharpness:factor=1.9": ImageEnhance.Sharpness(image).enhance(1.9),
    }
    for text, wanted in expected.items():
        assert same(parsed(f"{text}:p=1")(image, Chance(0, 0, 0)), wanted)


def test_randaugment_draws_with_replacement_and_applies_half(monkeypatch):
    applied = Counter()
    for name in RANDAUGMENT:
        kind = OPERATIONS[name]
        change = kind.change
        monkeypatch.setattr(
            kind,
            "change",
            lambda self, image, chance, name=name, change=change: applied.update([name]) or change(self, image, chance),
        )
    augmentation, image = parsed("randaugment:n=3:m=10"), picture((4, 4))
    seen = Counter()
    for row in range(2000):
        before = applied.total()
        augmentation(image, Chance(0, 0, row))
        seen[applied.total() - before] += 1
    # Binomial(3, 1/2): 250, 750, 750, 250; and each of ten operations about 300 times.
    assert np.allclose([seen[count] / 2000 for count in range(4)], [1 / 8, 3 / 8, 3 / 8, 1 / 8], atol=0.04)
    assert all(240 < applied[name] < 360 for name in RANDAUGMENT)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Is the dog on the left?", "sides"),
        ("RIGHT lung opacity", "sides"),
        ("the left-hand drawer", "sides"),
        ("left_hand", "sides"),
        ("the leftmost cup", "sides"),
        ("turning anti-clockwise", "sides"),
        ("a north-eastern view", "sides"),
        ("northwest", "sides"),
        ("Which way does it go?", "sides"),
        ("opacity in the RUL", "sides"),
        ("R frontal lobe", "sides"),
        ("where does the L renal vein drain", "sides"),
        ("What does the sign say?", "reading"),
        ("what time is it", "reading"),
        ('a shop called "Anna"', "reading"),
        ("a shop called “Anna”", "reading"),
        ("A person reading", "reading"),
    ],
)
def test_texts_that_are_not_true_of_a_mirror_image(text, kind):
    assert mirror_word(["a dog", text])[0] == kind


@pytest.mark.parametrize(
    "text",
    [
        "a dog",
        "a bright day",
        "he leftover soup",
        "an assignment",
        "a beast at the feast",
        "some timber",
        "",
        "saying2",
        "it is larger",
        "lvl 3",
    ],
)
def test_other_texts_do_not_forbid_it(text):
    assert mirror_word([text]) is None


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_guarded_flips_spare_rows_and_nothing_else_changes(seed):
    image, text = picture((9, 5)), ["what is to the left of the cup?"]
    guarded, plain, spared = (
        parsed(f"{name}:p=0.5,brightness:factor=0.5")(image, Chance(seed, 0, 0, texts=texts))
        for name, texts in (("flip", ["a cup"]), ("flip-all", text), ("flip", text))
    )
    assert same(guarded, plain)
    assert same(spared, plain) or same(spared, ImageOps.mirror(plain))


def test_flips_of_a_spared_row_never_happen():
    image = picture((9, 5))
    flipped = {"flip": 0, "flip-all": 0}
    for name in flipped:
        for row in range(40):
            found = parsed(name)(image, Chance(0, 0, row, texts=["left"]))
            flipped[name] += same(found, ImageOps.mirror(image))
    assert flipped["flip"] == 0
    assert 10 < flipped["flip-all"] < 30


def test_a_list_is_read_and_written_again():
    found = parsed("published")
    assert found == parsed(PUBLISHED) == parsed(str(found))
    assert str(found) == "crop:p=1:scale=0.5,flip-all:p=0.5,randaugment:p=0.5:n=2:m=5"
    assert (found.flips, found.flips_all) == (True, True)
    assert (parsed("flip").flips, parsed("flip").flips_all) == (True, False)
    assert not parsed("crop,rotate").flips
    assert parse_augmentation("none") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flpi", r"'flpi' is no operation.*did you mean.*flip.*There are: crop, flip,"),
        ("crop,published", "'published' stands alone"),
        ("crop,", "'' is no operation"),
        ("crop:0.5", r"'crop' has no setting '0.5'; there are: p=NUMBER, scale=NUMBER"),
        ("flip:scale=1", "'flip' has no setting 'scale=1'"),
        ("flip:p=2", "flip: p must lie between 0 and 1, got 2"),
        ("flip:p=nan", "must lie between 0 and 1, got nan"),
        ("flip:p=1:p=1", "p is given twice"),
        ("randaugment:n=1.5", "n is a whole number, got '1.5'"),
        ("rotate:degrees=x", "degrees is a number, got 'x'"),
        ("crop:scale=0", r"scale must lie between 0\.01 and 1"),
        ("flip,crop", "'crop' works on the picture before it is resized; put it first"),
    ],
)
def test_mistakes_are_explained(text, words):
    with pytest.raises(
        UserError, match=f"^--augment: .*{words}" if not words.startswith("'") else f"^--augment: {words}"
    ):
        parse_augmentation(text)


def test_the_page_has_every_operation_with_its_settings():
    page = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    for name, kind in OPERATIONS.items():
        (line,) = (line for line in lines if f"`{name}`" in line.split("|")[1])
        told = set(re.findall(r"`(\w+=[\d.]+)`", line.split("|")[3]))
        assert told == {f"{key}={value:g}" for key, value in kind().settings().items()}
