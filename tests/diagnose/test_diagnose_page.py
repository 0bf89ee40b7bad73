"""The command writes a page that needs nothing but itself, and numbers that are those of the Python interface."""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from padapter.cli import app
from padapter.diagnose import (
    DiagnoseOptions,
    diagnose,
    embedding,
    figure_calibration,
    figure_gain,
    figure_heterophily,
    figure_p_mu,
    figure_tsne,
    head_maps,
    sections,
)
from padapter.diagnose.page import headlines, render
from padapter.diagnose.results import Exponent
from padapter.errors import UserError


@pytest.fixture(scope="module")
def found(run):
    return diagnose(str(run[0]), run[1], rows=4, points=8, device="cpu")


def command(*words, code=0):
    result = CliRunner().invoke(app, ["diagnose", *map(str, words)], env={"COLUMNS": "200"})
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.output


class Page(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.texts.append(data)


class FirstTwo:
    """In the place of t-SNE, which takes time: the first two coordinates."""

    def __init__(self, **options):
        self.given = []

    def fit_transform(self, nodes):
        self.given.append(nodes)
        return nodes[:, :2]


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    """What the command writes, and says."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "check_tsne", lambda: FirstTwo)
        said = command(
            run[0], "--data", run[1], "--rows", 4, "--points", 8, "--head-maps", "0", "-o",
            folder / "new" / "page.html", "--numbers", folder / "numbers.json", "--quiet", "--device", "cpu",
        )  # fmt: skip
    return (folder / "new" / "page.html").read_text(), json.loads((folder / "numbers.json").read_text()), said


def test_the_page_needs_nothing_but_itself(page):
    text, _, said = page
    parsed = Page(text)
    links = [value for _, name, value in parsed.attributes if name in ("src", "srcset", "action", "data")]
    links += [value for tag, name, value in parsed.attributes if name == "href" and not value.startswith("#")]
    assert all(link.startswith("data:") for link in links)
    assert not re.search(r"@import|https?://(?!www\.w3\.org)", text)
    assert "default-src 'none'" in text
    assert "script" not in parsed.tags
    assert "run & <b>" in parsed.texts  # the name of the run, and not markup
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert "2 attention layers, 4 rows" in said


def test_every_section_says_how_to_read_it(page, found):
    parsed = Page(page[0])
    headings = [
        "What was learnt about attention", "Does attention join unlike nodes?",
        "How much does calibration change the weights?", "Which distances gained weight?",
        "Which places in the text gained weight?", "Where do query and value nodes lie?",
    ]  # fmt: skip
    assert [text for text in parsed.texts if text in headings] == headings
    assert parsed.texts.count("How to read it.") == len(headings)
    heads = [f"{layer.label}, head {head}" for layer in found.layers for head in range(layer.heads)]
    assert parsed.tags.count("svg") == 3 + 2 * len(found.layers) + 1 + len(heads)
    assert len(heads) == 8
    assert all(parsed.texts.count(head) == 2 for head in heads)  # title and description
    assert parsed.tags.count("details") == len(found.layers)
    for sentence in headlines(found):
        assert sentence in parsed.texts


def test_the_numbers_are_those_of_python(page, found):
    numbers = page[1]
    assert (numbers["model"], numbers["method"], numbers["rows"]) == (found.model, "p-adapter", 4)
    assert numbers["numbers"] == json.loads(json.dumps(found.numbers()))
    layer = found.layer("layer 0, cross-attention")

    def look_up(**wanted):
        [record] = [it for it in numbers["numbers"] if all(it[key] == value for key, value in wanted.items())]
        return record["mean"]

    about = {"layer": layer.name, "state": "after", "head": None}
    assert look_up(**about, quantity="divergence") == pytest.approx(layer.after.divergence.overall)
    assert look_up(**about, quantity="p", group="used") == pytest.approx(layer.exponents["p"].value[0])
    near = look_up(**about, quantity="by distance", weights="calibrated", group="1")
    assert near == pytest.approx(layer.after.calibrated.by_distance.overall[0])
    one_head = look_up(**(about | {"head": 2}), quantity="heterophily", weights="plain")
    assert one_head == pytest.approx(layer.after.plain.heterophily.mean[2])
    assert look_up(layer=layer.name, state="start", quantity="p") == 1.5


def test_numbers_alone(run, tmp_path, found):
    words = (run[0], "--data", run[1], "--rows", 4, "--quiet", "-o", tmp_path / "numbers.csv")
    command(*words)
    lines = list(csv.DictReader((tmp_path / "numbers.csv").read_text().splitlines()))
    expected = found.numbers()
    assert len(lines) == len(expected)
    for line, record in zip(lines, expected, strict=True):
        assert line["quantity"] == record["quantity"]
        assert float(line["mean"]) == pytest.approx(record["mean"], nan_ok=True)
    assert "exists; --overwrite replaces it" in command(*words, code=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "page.txt"}, "--output: page.txt must end in one of .html, .json, .csv"),
        ({"numbers": "n.html"}, "--numbers: n.html must end in one of .json, .csv"),
        ({"output": "a.csv", "numbers": "b.json"}, "--numbers: --output a.csv holds the numbers already"),
        ({"points": 3}, "--points: a map needs at least 8 nodes"),
        ({"rows": 0}, "--rows: must be at least 1"),
        ({"head_maps": "one"}, "--head-maps: expected all, or numbers with commas between them, got 'one'"),
        ({"head_maps": "0", "points": 0}, "--head-maps: maps are drawn on a page"),
        ({"head_maps": "0", "output": "a.csv"}, "--head-maps: maps are drawn on a page"),
        ({"device": "tpu"}, "--device: 'tpu' is not one of auto, cpu, cuda"),
    ],
)
def test_options_that_make_no_sense(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        DiagnoseOptions(**{"run": "run", "data": "data", "output": "page.html", **changes})


def test_what_is_wrong_is_said_before_the_work(run, tmp_path, monkeypatch):
    words = ("--data", run[1], "-o", tmp_path / "page.html")
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder; name a file" in command(run[0], *words[:2], "-o", tmp_path / "folder.csv", code=2)
    assert "is not a folder written by `padapter train`" in command(tmp_path, *words, code=2)
    assert "no layer 7 is looked at; there are layers 0 (" in command(run[0], *words, "--head-maps", "0,7", code=2)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert 'pip install "padapter[explain]"' in command(run[0], *words, code=2)
    assert not (tmp_path / "page.html").exists()


class Module:
    """An attention module, as far as maps of heads go."""

    def __init__(self, name, index, heads):
        self.name, self.index, self.heads = name, index, heads


def test_maps_of_heads_are_bounded(monkeypatch):
    modules = [Module("connector", None, 2), Module("first", 0, 12), Module("cross", 0, 12), Module("second", 1, 12)]
    assert head_maps.chosen("0", modules) == ["first", "cross"]
    assert head_maps.chosen("1,0", modules) == ["first", "cross", "second"]
    assert head_maps.chosen("all", modules) == ["connector", "first", "cross", "second"]
    assert head_maps.nodes_each([]) is None
    for count in (1, 10, 100):
        layers = [Module(str(number), number, 1) for number in range(count)]
        assert head_maps.chosen("all", layers)
        nodes = 4 * head_maps.nodes_each(layers) * count  # query and value nodes, before and after
        assert 0.9 * head_maps.NODES < nodes <= head_maps.NODES
    monkeypatch.setattr(head_maps, "MOST_MAPS", 30)
    with pytest.raises(UserError, match=r"--head-maps: all means 38 maps, and a page has room for 30; name fewer"):
        head_maps.chosen("all", modules)


def test_a_map_of_a_head_shows_its_own_nodes(found, monkeypatch):
    layer = found.layer("layer 0, self-attention")
    tsne = FirstTwo()
    monkeypatch.setattr(embedding, "check_tsne", lambda: lambda **options: tsne)
    places = embedding.embed(layer, head=1, most=3)
    points = [getattr(state.points, f"{kind}_heads")[1, :3] for state in (layer.before, layer.after)
              for kind in ("query", "value")]  # fmt: skip
    np.testing.assert_array_equal(tsne.given[0], np.concatenate(points))
    np.testing.assert_array_equal(places.value["after"], points[3][:, :2])
    assert len(places.query["before"]) == 3


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves the figures of a page out, which take most of its time, where its text is looked at."""
    monkeypatch.setattr(sections, "_draw", lambda name, label, make, title=None: sections.Drawing(label, ""))


def without_points(found):
    """The first layer alone, not sampled."""
    [layer] = found.layers[:1]
    after = None if layer.after is None else replace(layer.after, points=None)
    return replace(found, layers=(replace(layer, before=replace(layer.before, points=None), after=after),))


@pytest.mark.usefixtures("undrawn")
def test_a_model_without_a_p_adapter_shows_what_applies(found):
    [layer] = without_points(found).layers
    layer = replace(layer, exponents={}, after=replace(layer.after, calibrated=None, divergence=None, own=None))
    plain = replace(found, layers=(layer,), method="lora", notes=("no p-adapter is at work here",))
    text = render(plain)
    assert "No p-adapter is at work here" in text
    for gone in ("What was learnt about attention", "How much does calibration change"):
        assert gone not in text
    for kept in ("Does attention join unlike nodes?", "Which distances gained weight?"):
        assert kept in text
    for refused in (figure_p_mu, figure_calibration):
        with pytest.raises(UserError, match=r"p or mu|no p-adapter"):
            refused(plain)
    unadapted = replace(plain, layers=(replace(layer, after=None),))
    assert "Which distances gained weight?" not in render(unadapted)
    with pytest.raises(UserError, match="no change of weights by distance"):
        figure_gain(unadapted.layers[0])


def test_figures_show_the_numbers(found):
    layer = found.layer("layer 0, self-attention")
    calibration, adaptation = layer.gain()
    heights = [bar.get_height() for bar in figure_gain(layer).axes[0].patches]
    there = layer.before.plain.by_distance.overall > 0
    np.testing.assert_allclose(heights, 100 * np.concatenate([calibration[there], adaptation[there]]), atol=1e-12)
    with pytest.raises(UserError, match="by offset"):
        figure_gain(found.layer("layer 0, cross-attention"), by="offset")

    left, right = figure_calibration(found).axes
    np.testing.assert_allclose(
        [bar.get_width() for bar in left.patches], [each.after.divergence.overall for each in found.layers]
    )
    drawn = {tuple(map(float, line.get_xdata())) for line in right.lines}
    ends = layer.after.plain.entropy.overall, layer.after.calibrated.entropy.overall
    assert tuple(map(float, ends)) in drawn

    marks = [(line.get_marker(), *map(float, line.get_xdata())) for line in figure_heterophily(found).axes[0].lines]
    apart = float(layer.before.plain.heterophily.overall - layer.before.random.overall)
    error = 2 * float(layer.before.plain.preference.standard_error[0])
    assert ("o", apart) in marks
    assert ("None", apart - error, apart + error) in marks

    p, mu = figure_p_mu(found).axes
    for axes, name in ((p, "p"), (mu, "mu")):
        dots = [float(x) for line in axes.lines if line.get_marker() == "o" for x in line.get_xdata()]
        np.testing.assert_allclose(dots, [each.exponents[name].value[0] for each in found.layers])
    before, after = figure_tsne(layer).axes
    assert (before.get_title(), after.get_title()) == ("before", "after")
    assert [len(line.get_xdata()) for line in before.lines] == [8, 8]


@pytest.mark.usefixtures("undrawn")
def test_parameters_at_their_limit_are_pointed_out(found):
    at_limit = Exponent(1.25, np.array([1.0, 1.5]), True, np.array([0.7, 1.5]))
    [layer] = without_points(found).layers
    changed = replace(found, layers=(replace(layer, exponents={"p": at_limit}),))
    assert "p went below 1 in training and counts as 1 in 1 of 1 layers." in headlines(changed)
    markers = {line.get_marker(): line.get_xdata() for line in figure_p_mu(changed).axes[0].lines[:5]}
    assert list(markers["D"]) == [1.0]
    text = render(changed)
    assert "1.25 → 1 to 1.5" in text
    assert "Where do query and value nodes lie?" not in text  # nothing was sampled
    assert {record["mean"] for record in changed.numbers() if record["group"] == "stored"} == {0.7, 1.5}


def test_headlines_say_where_weight_goes(found):
    layers = []
    for layer in found.layers:
        plain = layer.after.plain.by_distance
        shifted = replace(plain, mean=np.roll(np.eye(10)[:1].repeat(4, 0), 0 if layer.cross else 9, axis=1))
        layers.append(
            replace(layer, after=replace(layer.after, calibrated=replace(layer.after.calibrated, by_distance=shifted)))
        )
    sentence = headlines(replace(found, layers=tuple(layers)))[1]
    assert sentence == "It moves weight towards nearer nodes in 1 of 2 layers, and towards more distant ones in 1."


def test_headlines_call_nothing_a_preference_that_may_be_noise(found):
    layers = []
    for layer, mean in zip(found.layers, (0.5, -0.5), strict=True):
        preference = replace(layer.before.plain.preference, mean=np.array([mean]), std=np.array([0.1]))
        layers.append(
            replace(layer, before=replace(layer.before, plain=replace(layer.before.plain, preference=preference)))
        )
    sentence = headlines(replace(found, layers=tuple(layers)))[-1]
    assert "unlike the query in 1 of 2 layers and alike ones in 1; in 0 it is" in sentence
    noisy = replace(layers[0].before.plain.preference, std=np.array([1.0]))
    layers[0] = replace(
        layers[0], before=replace(layers[0].before, plain=replace(layers[0].before.plain, preference=noisy))
    )
    sentence = headlines(replace(found, layers=tuple(layers)))[-1]
    assert "unlike the query in 0 of 2 layers and alike ones in 1; in 1 it is" in sentence
