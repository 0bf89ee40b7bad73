"""A session over runs of mPLUG: questions are read by encoders of their own, and so is their relevance."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from tiny_blip import make_image
from tiny_mplug_folder import save_tiny_mplug
from tiny_world import short_run

from padapter.demo.overlay import relevance_map
from padapter.demo.session import Session
from padapter.errors import UserError
from padapter.explain import explain
from padapter.training import train

WORDS = (
    "what", "color", "is", "the", "dog", "red", "blue", "?", "how", "many", "cats", "two", "cat", "there", "a", "it",
    "correct", "incorrect", "statement", "small", "picture", "in",
)  # fmt: skip
SETTINGS = {
    "questions": {},
    "labels": {"task": "entailment", "method": "lora"},
    "captions": {"task": "caption"},
}
TEXTS = {"questions": "what color is the dog ?", "labels": "the dog is red"}


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "wide.png"
    make_image(3).resize((40, 24)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Runs of one step by name, with large enough a rate that every adapter says something of its own."""
    root = tmp_path_factory.mktemp("runs")
    model = save_tiny_mplug(root / "model", WORDS)

    @functools.cache
    def made(name):
        options = {"learning_rate": 0.5, "max_steps": 1, "score_base": False, **SETTINGS[name]}
        train(short_run(model, data[options.get("task", "vqa")], output=str(root / name), **options))
        return str(root / name)

    return made


@pytest.mark.parametrize("name", ["questions", pytest.param("labels", marks=pytest.mark.slow)])
def test_an_adapter_answers_as_its_run_does(run, picture, name):
    text = TEXTS[name]
    alone = explain(run=run(name), image=picture, text=text, device="cpu", layers="0", compare=False)
    session = Session([run(name)], device="cpu")
    base, adapted = (session.answer(picture, text, choice.title) for choice in session.choices)
    assert adapted.text == alone.sides[0].answer == alone.text
    mine, other = adapted.explanation.sides[0], alone.sides[0]
    assert mine.words == other.words
    assert set(text.split()) <= set(mine.words)
    np.testing.assert_allclose(mine.log_probs, other.log_probs, rtol=1e-5)
    np.testing.assert_allclose(mine.relevance[0], other.relevance[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(mine.word_relevance, other.word_relevance, rtol=1e-4, atol=1e-7)
    assert mine.word_relevance.sum() > 0
    shown, share = relevance_map(adapted.explanation)
    assert shown.width > shown.height
    assert np.nanmax(share) == 1
    assert base.explanation is not None
    assert not np.allclose(base.explanation.sides[0].relevance[0].sum(), mine.relevance[0].sum(), rtol=1e-3)


@pytest.mark.slow
def test_captions_are_asked_by_themselves(run, picture):
    with pytest.raises(UserError, match=r"RUN: .* has one arrangement for questions and another for captions"):
        Session([run("questions"), run("captions")], device="cpu")
    session = Session([run("captions")], device="cpu")
    for choice in session.choices:
        found = session.answer(picture, None, choice.title)
        assert found.text == "" or found.explanation.sides[0].words == ("[CLS]",)
    assert any(session.answer(picture, None, choice.title).text for choice in session.choices)
