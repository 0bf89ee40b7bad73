from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from padapter.errors import UserError
from padapter.metrics import ENTAILMENT_RULE, ClassScores, score_entailment


def test_accuracy_classes_and_confusion():
    gold = {"1": "true", "2": "true", "3": "false", "4": "false"}
    scores = score_entailment({"1": "true", "2": "false", "3": "false", "4": "maybe"}, gold)
    assert scores.accuracy == 0.5
    assert scores.per_class == {
        "false": ClassScores(precision=0.5, recall=0.5, f1=0.5, count=2),
        "true": ClassScores(precision=1, recall=0.5, f1=2 / 3, count=2),
    }
    assert scores.confusion == {
        "false": {"false": 1, "true": 0, "maybe": 1},
        "true": {"false": 1, "true": 1, "maybe": 0},
    }
    assert scores.per_item == {"1": 1.0, "2": 0.0, "3": 1.0, "4": 0.0}
    assert scores.rule == ENTAILMENT_RULE


def test_the_text_false_is_not_true():
    assert score_entailment({"1": "false"}, {"1": "true"}).accuracy == 0


def test_ids_must_match():
    with pytest.raises(UserError, match="1 items have no prediction"):
        score_entailment({}, {"1": "true"})


LABELS = st.sampled_from(["entailment", "neutral", "contradiction", "not sure"])


@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
@settings(max_examples=40)
@given(st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=30), st.data())
def test_agrees_with_scikit_learn_in_any_order(pairs, data):
    gold, said = [list(column) for column in zip(*pairs, strict=True)]
    scores = score_entailment(dict(enumerate(said)), dict(enumerate(gold)))
    assert scores.accuracy == pytest.approx(np.mean(np.array(gold) == np.array(said)))
    expected = precision_recall_fscore_support(gold, said, labels=sorted(set(gold)), zero_division=0)
    assert list(scores.per_class) == sorted(set(gold))
    np.testing.assert_allclose([astuple(found) for found in scores.per_class.values()], np.array(expected).T)
    columns = list(next(iter(scores.confusion.values())))
    assert sorted(columns) == sorted(set(gold) | set(said))
    matrix = confusion_matrix(gold, said, labels=columns)[: len(scores.confusion)]
    np.testing.assert_array_equal([list(row.values()) for row in scores.confusion.values()], matrix)
    order = data.draw(st.permutations(range(len(pairs))))
    assert score_entailment({n: said[n] for n in order}, {n: gold[n] for n in order}) == scores


def test_a_class_that_is_never_predicted_has_no_precision():
    assert score_entailment({"1": ""}, {"1": "true"}).per_class == {"true": ClassScores(0, 0, 0, 1)}
