from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score

from padapter.errors import UserError
from padapter.metrics import ANSWERABILITY_RULE, answerable_score, score_answerability

GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_recorded_values():
    recorded = json.loads((GOLDEN / "vqa_vizwiz.json").read_text(encoding="utf-8"))
    labels = {key: bool(answerable) for key, *_, answerable, _ in recorded["images"]}
    scores = {key: score for key, *_, score in recorded["images"]}
    found = score_answerability(scores, labels)
    assert found.rule == ANSWERABILITY_RULE
    assert round(100 * found.average_precision, 2) == recorded["unanswerability"]["average_precision"]
    assert round(100 * found.f1, 2) == recorded["unanswerability"]["f1_score"]


# Few values, so that many are equal; quarters, so that turning them round is exact.
PAIRS = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=1, max_size=30)


@settings(max_examples=40)
@given(PAIRS, st.data())
def test_agrees_with_scikit_learn_in_any_order(pairs, data):
    pairs = [*pairs, (0.25, False)]
    found = score_answerability(dict(enumerate(s for s, _ in pairs)), dict(enumerate(a for _, a in pairs)))
    flags = np.array([not answerable for _, answerable in pairs])
    scores = 1 - np.array([score for score, _ in pairs])
    assert found.average_precision == pytest.approx(average_precision_score(flags, scores), abs=1e-12)
    assert found.f1 == pytest.approx(f1_score(flags, scores > 0.5, zero_division=0), abs=1e-12)
    shuffled = data.draw(st.permutations(pairs))
    again = score_answerability(dict(enumerate(s for s, _ in shuffled)), dict(enumerate(a for _, a in shuffled)))
    assert again == found


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        ({}, {}, "nothing to score"),
        ({"1": 0.5}, {"1": True, "2": False}, "'2'"),
        ({"1": 0.5}, {"1": True}, "None of the 1 items is unanswerable"),
        ({"1": 1.5}, {"1": False}, "item '1' is 1.5"),
        ({"1": math.nan}, {"1": False}, "item '1' is nan"),
    ],
)
def test_refuses_what_cannot_be_scored(scores, labels, words):
    with pytest.raises(UserError, match=words):
        score_answerability(scores, labels)


@pytest.mark.parametrize(
    ("text", "candidates", "score"),
    [
        ("unanswerable", None, 0),
        (" Unanswerable.", None, 0),
        ("unsuitable", None, 0),
        ("unsuitable image", None, 1),
        ("", None, 1),
        ("red", {"red": -1.0, "blue": -2.0}, 1),
        ("unanswerable", {"red": 0.0, "unanswerable": math.log(3)}, 0.25),
        ("red", {"red": -900.0, "unanswerable": -900.0, "unsuitable": -900.0}, 1 / 3),
    ],
)
def test_what_an_answer_says_of_answerability(text, candidates, score):
    assert answerable_score(text, candidates) == pytest.approx(score)
