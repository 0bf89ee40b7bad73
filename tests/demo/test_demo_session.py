"""What the demo page asks: several adapters over one set of weights, each answering as its run does by itself."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_blip import make_image
from typer.testing import CliRunner

from padapter.cli import app
from padapter.demo import DemoOptions
from padapter.demo.examples import write_examples
from padapter.demo.overlay import LEAST, overlay, relevance_map
from padapter.demo.session import Session, run_names
from padapter.errors import UserError
from padapter.explain import Explanation, Side, View, explain

QUESTION = "what color is the dog ?"
NAMES = ("first", "second", "low-rank", "prefix", "labels")


@pytest.fixture(scope="session")
def session(runs):
    return Session([runs(name) for name in NAMES], device="cpu")


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "wide.png"
    make_image(3).resize((40, 24)).save(path)
    return str(path)


def titles(session):
    return {choice.title.split(" (")[0]: choice.title for choice in session.choices if choice.adapter}


def test_one_set_of_base_weights(session):
    assert len(session._models) == 3  # p-adapters, LoRA, prefixes
    places = [
        {name.replace(".base_layer", ""): tensor.data_ptr() for name, tensor in backbone.base_model.named_parameters()}
        for backbone in session._models.values()
    ]
    shared = set.intersection(*(set(one) for one in places))
    assert len(shared) > 50
    assert all(one[name] == places[0][name] for one in places[1:] for name in shared)


def test_choices(session):
    assert [choice.title for choice in session.choices] == [
        "Base model (vqa)",
        "Base model (entailment)",
        "first (p-adapter, vqa)",
        "second (p-adapter, vqa)",
        "low-rank (lora, vqa)",
        "prefix (prefix, vqa)",
        "labels (p-adapter, entailment)",
    ]
    assert [choice.asks_for for choice in session.choices][:3] == ["question", "hypothesis", "question"]
    assert len({(choice.peft_type, choice.adapter) for choice in session.choices if choice.adapter}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES[1:])
def test_every_adapter_answers_as_its_run_does(session, runs, picture, name):
    text = "the dog is red" if name == "labels" else QUESTION
    alone = explain(run=runs(name), image=picture, text=text, device="cpu", layers="0")
    task = "entailment" if name == "labels" else "vqa"
    # There and back, so that what another adapter leaves behind would show.
    for title, side in ((titles(session)[name], 1), (f"Base model ({task})", 0), (titles(session)[name], 1)):
        found = session.answer(picture, text, title)
        assert found.text == alone.sides[side].answer
        if found.text != alone.text:
            continue  # explained by itself: the relevance of another text
        (mine,), other = found.explanation.sides, alone.sides[side]
        np.testing.assert_allclose(mine.log_probs, other.log_probs, rtol=1e-5)
        np.testing.assert_allclose(mine.relevance[0], other.relevance[0], rtol=1e-4, atol=1e-7)


def test_adapters_differ(session, picture):
    """Or else the test above would pass with an adapter that is never switched on."""
    heard = {}
    for name in ("first", "second", "low-rank", "prefix"):
        backbone_choice = session.choice(titles(session)[name])
        with session._active(backbone_choice) as backbone:
            heard[name] = backbone.rank([Image.open(picture).convert("RGB")], [QUESTION], ["red", "blue"])[0]
    with session._active(session.choices[0]) as backbone:
        heard["base"] = backbone.rank([Image.open(picture).convert("RGB")], [QUESTION], ["red", "blue"])[0]
    values = [tuple(np.round(value, 4)) for value in heard.values()]
    assert len(set(values)) == len(values), heard


def test_probabilities_of_labels(session, picture):
    found = session.answer(picture, "the dog is red", titles(session)["labels"])
    assert set(found.probabilities) == {"correct", "incorrect"}
    assert next(iter(found.probabilities)) == found.text
    assert sum(found.probabilities.values()) == pytest.approx(1)
    with session._active(session.choice(titles(session)["labels"])) as backbone:
        task = session.sources["labels"].task
        prompt = task.prompt({"hypothesis": "the dog is red"})
        scores = torch.tensor(backbone.rank([Image.open(picture).convert("RGB")], [prompt], ["correct", "incorrect"]))
    expected = scores.softmax(dim=-1)[0].tolist()
    assert [found.probabilities[word] for word in ("correct", "incorrect")] == pytest.approx(expected)
    assert session.answer(picture, QUESTION, titles(session)["first"]).probabilities is None


def test_several_threads_at_once(session, picture):
    """Each gets the answer of the adapter that it asked."""
    wanted = [titles(session)["first"], titles(session)["second"], "Base model (vqa)"]
    alone = [session.answer(picture, QUESTION, title).explanation.sides[0].log_probs for title in wanted]
    together = [None] * len(wanted)

    def ask(number):
        together[number] = session.answer(picture, QUESTION, wanted[number]).explanation.sides[0].log_probs

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_bad_pictures_and_texts(session, tmp_path, picture):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture at all")
    with pytest.raises(UserError, match="not an image"):
        session.answer(broken, QUESTION, titles(session)["first"])
    with pytest.raises(UserError, match=r"needs a question about the picture"):
        session.answer(picture, "  ", titles(session)["first"])
    with pytest.raises(UserError, match="there is no model 'other' here"):
        session.answer(picture, QUESTION, "other")
    small = tmp_path / "small.png"
    make_image(1).resize((6, 6)).save(small)
    found = session.answer(small, QUESTION, titles(session)["first"])
    assert found.explanation is None
    assert "too small" in found.note
    assert found.text


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


CHANGES = {
    "whole": lambda run: (edit(run / "config.yaml", "method: p-adapter", "method: full"), (run / "model").mkdir()),
    "elsewhere": lambda run: edit(run / "config.yaml", "model: ", "model: another"),
    "larger": lambda run: edit(run / "preprocessing.json", '"height": 16', '"height": 32'),
    "pissa": lambda run: edit(run / "adapter" / "adapter_config.json", "{", '{"init_lora_weights": "pissa", '),
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("whole", r"RUN: whole was trained by method 'full', which changes the base model"),
        ("elsewhere", r"RUN: elsewhere adapts the model 'another.*', and first adapts '"),
        ("larger", r"RUN: larger looks at pictures in another way than first \(they differ in processor\)"),
        ("pissa", r"RUN: pissa is a LoRA that started from 'pissa'"),
    ],
)
def test_runs_that_do_not_fit_are_refused(runs, tmp_path, name, message):
    changed = tmp_path / name
    shutil.copytree(runs("first"), changed, ignore=shutil.ignore_patterns("checkpoints"))
    CHANGES[name](changed)
    with pytest.raises(UserError, match=message):
        Session([runs("first"), changed], device="cpu")


def test_an_adapter_that_does_not_fit_leaves_the_others(runs, session, tmp_path):
    """`PeftMethod.add` checks every tensor."""
    from safetensors.torch import load_file, save_file

    method, weights = session.sources["second"].method, session.sources["second"].weights
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "adapter_config.json").write_bytes((weights / "adapter_config.json").read_bytes())
    tensors = load_file(weights / "adapter_model.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, bad / "adapter_model.safetensors")
    backbone = session._models[method.peft_type]
    before = set(backbone.model.peft_config)
    with pytest.raises(UserError, match="the file lacks"):
        method.add(backbone, bad, "bad")
    assert set(backbone.model.peft_config) == before


def test_names_of_runs(tmp_path):
    assert run_names(["a/run", "b/run", "b/other"]) == ["a/run", "b/run", "b/other"]
    assert run_names(["a/one", "b/two"]) == ["one", "two"]
    with pytest.raises(UserError, match="is given twice"):
        run_names(["a", "b/../a"])


def test_examples_come_from_the_runs_data(runs, session, tmp_path):
    found = write_examples([runs(name) for name in NAMES], list(session.sources.values()), tmp_path, each=2)
    assert [(task, text) for task, _, text in found] == [
        ("vqa", "what color is the dog ?"), ("vqa", "how many cats"),
        ("entailment", "the dog is red"), ("entailment", "there is a cat"),
    ]  # fmt: skip
    with Image.open(found[1][1]) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(make_image(1)))


def explanation(size, views, grids):
    side = Side("x", None, ("a", "b"), np.zeros(2), tuple(grids), (), np.zeros((2, 0)), ())
    return Explanation(Image.new("RGB", size, (10, 200, 30)), "", "a b", tuple(views), (side,))


def test_the_map_lies_on_the_picture():
    grid = np.zeros((2, 2, 4))
    grid[0, 0, 1], grid[1, 1, 3] = 2.0, 1.0
    found = explanation((600, 400), [View((0.0, 0.0, 600.0, 200.0), 2, 4)], [grid])
    picture, share = relevance_map(found)
    assert picture.size == (600, 400)
    assert share.shape == (400, 600)
    assert np.isnan(share[200:]).all()  # below what the model sees
    assert not np.isnan(share[:200]).any()
    assert share[50, 225] == 1.0
    assert share[150, 500] == 0.5
    assert share[50, 50] == 0
    _, second = relevance_map(found, 1)
    assert second[150, 500] == 1.0
    drawn = np.asarray(overlay(found, strength=0.5))
    colours = {
        place: np.array(drawn[place], dtype=float) * 2 - (10, 200, 30) for place in ((50, 50), (50, 225), (300, 9))
    }
    np.testing.assert_allclose(colours[50, 50], (0, 0, 4), atol=2)  # the ends of the scale "inferno"
    np.testing.assert_allclose(colours[50, 225], (252, 255, 164), atol=2)
    np.testing.assert_allclose(colours[300, 9], 128, atol=2)
    np.testing.assert_array_equal(np.asarray(overlay(found, strength=0.0)), np.asarray(found.picture))


def test_small_and_large_pictures_are_shown_in_a_fitting_size():
    view = [View((0.0, 0.0, 20.0, 10.0), 1, 2)]
    small, share = relevance_map(explanation((20, 10), view, [np.array([[[1.0, 0.0]]] * 2)]))
    assert small.size == (LEAST // 20 * 20, LEAST // 20 * 10)
    assert (share[:, : share.shape[1] // 2] == 1).all()
    assert (share[:, share.shape[1] // 2 :] == 0).all()
    view = [View((0.0, 0.0, 4000.0, 2000.0), 1, 2)]
    large, share = relevance_map(explanation((4000, 2000), view, [np.array([[[1.0, 0.0]]] * 2)]))
    assert large.size == (1600, 800)
    np.testing.assert_allclose(share[:, :799], 1)


@pytest.mark.parametrize(
    ("words", "message"), [((), "RUN: is needed"), (("x", "--port", "0"), "--port: must lie between 1 and")]
)
def test_wrong_options(words, message):
    done = CliRunner().invoke(app, ["demo", *words])
    assert done.exit_code == 2
    assert message in done.stderr


def test_several_runs_from_the_command_line():
    assert DemoOptions(runs=["a", "b"]).host == "127.0.0.1"


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else found(name, *rest)
    )
    done = CliRunner().invoke(app, ["demo", "nothing-here"])
    assert done.exit_code == 2
    assert "pip install 'padapter[demo]'" in done.stderr
