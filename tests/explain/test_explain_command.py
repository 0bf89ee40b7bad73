"""``padapter explain`` on runs of one step: the page, the picture, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from tiny_world import short_run
from typer.testing import CliRunner

from padapter.cli import app
from padapter.errors import UserError
from padapter.explain import ExplainOptions, explain, write
from padapter.explain import figure as figures
from padapter.explain import page as pages
from padapter.explain.explanation import Explanation
from padapter.explain.page import content, render
from padapter.training import train

SCRIPT = "</script><script>alert(1)</script> what color is the dog ?"


@pytest.fixture(scope="session")
def runs(model, data, tmp_path_factory):
    """A run of one step by task."""
    root = tmp_path_factory.mktemp("runs")
    settings = {"vqa": {"method_options": {"where": "all", "mu": "0.3"}}, "entailment": {}}
    for task, changes in settings.items():
        train(short_run(model, data[task], task=task, output=str(root / task), max_steps=1, **changes))
    return {task: str(root / task) for task in settings}


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    """Wider than high."""
    path = tmp_path_factory.mktemp("picture") / "wide.png"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture(scope="session")
def found(runs, picture) -> Explanation:
    return explain(run=runs["vqa"], image=picture, text=SCRIPT, answer="red dog", device="cpu")


def call(*words):
    return CliRunner().invoke(app, ["explain", *words, "--device", "cpu"])


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.texts, self.inside = [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self.inside = dict(attrs).get("id") or tag

    def handle_data(self, text):
        self.texts[self.inside] = self.texts.get(self.inside, "") + text


def test_a_page_from_the_command_line(runs, picture, tmp_path):
    output = tmp_path / "page.html"
    output.write_text("what was here", encoding="utf-8")
    words = [runs["vqa"], "--image", picture, "--text", "what color is the dog ?", "-o", str(output)]
    assert "exists; --overwrite replaces it" in call(*words).stderr
    assert output.read_text(encoding="utf-8") == "what was here"
    done = call(*words, "--overwrite")
    assert done.exit_code == 0, done.output
    assert re.search(r"^p-adapter: says '.*'; log-probability of ", done.output, re.MULTILINE)
    assert "base model: says" in done.output
    page = Page(output.read_text(encoding="utf-8"))
    assert page.tags.count("script") == 2
    data = json.loads(page.texts["data"])
    assert data["size"] == [40, 24]
    assert [side["title"] for side in data["sides"]] == ["base model", "p-adapter"]


def test_one_label_against_the_others(runs, picture, tmp_path):
    output = tmp_path / "deep" / "page.html"
    words = ["--image", picture, "--text", "the dog is red", "-o", str(output), "--layers", "1", "--no-compare"]
    done = call(runs["entailment"], *words)
    assert done.exit_code == 0, done.output
    assert re.search(r"correct -?[\d.]+, not (in)?correct -?[\d.]+$", done.output, re.MULTILINE)
    assert "base model" not in done.output
    labels = {
        module["label"].split(", ")[1] for module in json.loads(Page(output.read_text()).texts["data"])["modules"]
    }
    assert labels == {"layer 1"}


def test_one_token_of_a_caption_without_an_adapter(model, picture):
    found = explain(
        model=model, task="caption", image=picture, answer="a red dog", token="dog", device="cpu", max_new_tokens=6
    )
    (side,) = found.sides
    assert (side.title, side.tokens) == ("base model", ("dog",))
    assert all(one.calibrated is None for one in side.attention)


def test_arrays_have_the_shapes_that_are_documented(found):
    base, adapted = found.sides
    assert (found.text, base.title, adapted.title) == ("red dog", "base model", "p-adapter")
    assert base.answer is not None
    for side in found.sides:
        assert side.tokens == ("red", "dog")
        assert side.log_probs.shape == (2,)
        assert side.relevance[0].shape == (2, 2, 2)
        assert side.word_relevance.shape == (2, len(side.words))
        assert side.words[0] == "[DEC]"
    assert [(one.part, one.cross, one.layer) for one in adapted.attention] == [
        ("vision", False, 0), ("vision", False, 1), ("decoder", True, 0), ("decoder", True, 1),
    ]  # fmt: skip
    for one, other in zip(base.attention, adapted.attention, strict=True):
        heads = 3 if one.part == "vision" else 4
        assert one.plain[0].shape == other.plain[0].shape == other.calibrated[0].shape == (heads, 2, 2)
        assert one.calibrated is None
        assert one.own is None
        assert other.own.shape == (heads,)
        assert (other.own > 0).all()
        # weights on patches, on the class token (not shown) and the own share make one, where the degree is "row"
        if one.part == "decoder":
            assert (other.calibrated[0].sum(axis=(1, 2)) + other.own < 1 + 1e-5).all()
    assert found.on_picture().shape == found.on_picture(0, 1).shape == (24, 40)
    np.testing.assert_allclose(found.on_picture().sum(), adapted.relevance[0].sum(), rtol=1e-2)


def test_the_adapter_leaves_the_base_side_alone(found, model, picture):
    """The first side is what the unadapted model gives by itself."""
    alone = explain(model=model, task="vqa", image=picture, text=SCRIPT, answer="red dog", device="cpu")
    assert [side.title for side in alone.sides] == ["base model"]
    np.testing.assert_allclose(alone.sides[0].relevance[0], found.sides[0].relevance[0], rtol=1e-6)
    assert not np.allclose(found.sides[1].relevance[0], found.sides[0].relevance[0], rtol=1e-3)
    for one, other in zip(alone.sides[0].attention, found.sides[0].attention, strict=True):
        np.testing.assert_allclose(one.plain[0], other.plain[0], rtol=1e-6)


def test_nothing_in_a_prompt_becomes_html_and_nothing_is_loaded(found):
    sides = [dataclasses.replace(side, words=(SCRIPT, *side.words[1:])) for side in found.sides]
    page = Page(render(dataclasses.replace(found, text=SCRIPT, prompt=SCRIPT, sides=tuple(sides))))
    assert page.tags.count("script") == 2
    assert not page.links
    assert json.loads(page.texts["data"])["sides"][1]["words"][0] == SCRIPT
    assert not re.search(r"(?:https?:)?//[a-z]", page.texts["script"])
    assert SCRIPT in " ".join(page.texts.values())


def test_the_pages_bytes_are_the_arrays(found):
    data = content(found)
    side = data["sides"][1]
    raw = np.frombuffer(base64.b64decode(side["data"]), np.uint8).reshape(2, 2, 2)
    top = np.array(side["top"])[:, None, None]
    np.testing.assert_allclose(raw / 255 * top, found.sides[1].relevance[0], atol=top.max() / 255)
    module = data["modules"][-1]
    assert [pane["kind"] for pane in module["panes"]] == ["attention", "attention", "calibrated attention"]
    maps = found.sides[1].attention[-1]
    raw = np.frombuffer(base64.b64decode(module["panes"][2]["data"]), np.uint8).reshape(maps.calibrated[0].shape)
    top = np.array(module["panes"][2]["top"])[:, None, None]
    np.testing.assert_allclose(raw / 255 * top, maps.calibrated[0], atol=top.max() / 255)
    np.testing.assert_allclose(module["panes"][2]["own"], maps.own, rtol=1e-3)
    box = module["views"][0]["box"]
    np.testing.assert_allclose(box, [0, 0, 40, 24], atol=0.1)


def test_the_page_tells_how_likely_the_tokens_are(found):
    side = content(found)["sides"][1]
    np.testing.assert_allclose(side["probabilities"], np.exp(found.sides[1].log_probs), rtol=1e-3)
    np.testing.assert_allclose(side["probability"], np.prod(np.exp(found.sides[1].log_probs)), rtol=1e-3)
    # Others that hold all the probability: its logarithm has no sign to be told by.
    answers = ("red", "not blue"), np.array([-1.0, -0.0])
    others = dataclasses.replace(found.sides[0], tokens=answers[0], log_probs=answers[1], against=True)
    side = content(dataclasses.replace(found, sides=(others,)))["sides"][0]
    assert side["probabilities"] == [pytest.approx(np.exp(-1.0), rel=1e-3), None]
    assert side["probability"] == pytest.approx(np.exp(-1.0), rel=1e-3)


def test_a_page_is_bounded(found, monkeypatch):
    """Past the limit grids get coarser, and keep their sums."""
    monkeypatch.setattr(pages, "NUMBERS", 30)
    small = content(found)
    assert {(view["rows"], view["columns"]) for module in small["modules"] for view in module["views"]} == {(1, 1)}
    whole = found.sides[0].attention[0].plain[0].sum(axis=(1, 2))
    np.testing.assert_allclose(small["modules"][0]["panes"][0]["top"], whole, rtol=1e-3)


def test_figures(found, tmp_path):
    figure = found.figure(layer=0)
    titles = [axis.get_title() for axis in figure.axes]
    said = [f"{side.title} (says “{side.answer}”): relevance" for side in found.sides]
    assert titles[:3] == ["picture", *said]
    assert titles[3:-1] == [
        "base model: attention, layer 0", "p-adapter: attention, layer 0", "p-adapter: calibrated attention, layer 0",
    ]  # fmt: skip
    heat = figure.axes[2].images[1].get_array()
    np.testing.assert_allclose(heat, found.on_picture(1))
    scale = figure.axes[-1]
    assert [tick.get_text() for tick in scale.get_xticklabels()] == ["0", "most of each map"]
    write(found, tmp_path / "summary.png")
    with Image.open(tmp_path / "summary.png") as image:
        assert image.width > 600


def test_a_large_or_narrow_picture_is_drawn_small_and_wide_enough(found, monkeypatch):
    expected = np.asarray(found.figure(layer=0).axes[2].images[1].get_array())
    assert found.figure(layer=0).axes[2].images[1].get_array().shape == (24, 40)
    monkeypatch.setattr(figures, "_SIDE", 20)
    small = np.asarray(found.figure(layer=0).axes[2].images[1].get_array())
    assert small.shape == (12, 20)
    # Half as long and half as wide: a pixel stands for four.
    np.testing.assert_allclose(small, expected.reshape(12, 2, 20, 2).sum(axis=(1, 3)), rtol=1e-6)
    long = dataclasses.replace(found, picture=found.picture.resize((400, 10)))
    picture = long.figure(layer=0).axes[0]
    assert picture.get_title() == "picture, stretched here"
    left, right, bottom, top = picture.images[0].get_extent()
    assert picture.get_aspect() * abs(top - bottom) / (right - left) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "x.txt"}, "--output: x.txt ends neither in .html nor in .png"),
        ({"layers": "one"}, "--layers: expected numbers with commas"),
        ({"cache_features": True}, "--cache-features: `explain` looks into the image encoder"),
        ({"answer": " "}, "--answer: is empty"),
        ({"run": None}, "--run: give either --run RUN or --model MODEL"),
    ],
)
def test_wrong_options(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ExplainOptions(**{"run": "run", "image": "x.png", "output": "x.html", **changes})


def test_what_cannot_be_explained(runs, picture):
    with pytest.raises(UserError, match=r"--answer: 'maybe' is none of the run's labels; it has: "):
        explain(run=runs["entailment"], image=picture, text="the dog is red", answer="maybe", device="cpu")
    with pytest.raises(UserError, match=r"--text: task 'vqa' needs the question"):
        explain(run=runs["vqa"], image=picture, device="cpu")
    with pytest.raises(UserError, match=r"--layers: there is no layer 7, 9; this model has layers 0, 1"):
        explain(run=runs["vqa"], image=picture, text="what ?", layers="9,0,7", device="cpu")
    with pytest.raises(UserError, match=r"nothing\.png"):
        explain(run=runs["vqa"], image="nothing.png", text="what ?", device="cpu")
