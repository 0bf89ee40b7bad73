from __future__ import annotations

import pytest

from padapter.errors import UserError
from padapter.metrics import ENTAILMENT_RULE, score_entailment


def test_accuracy_classes_and_confusion():
    gold = {"1": "true", "2": "true", "3": "false", "4": "false"}
    scores = score_entailment({"1": "true", "2": "false", "3": "false", "4": "maybe"}, gold)
    assert scores.accuracy == 0.5
    assert scores.per_class == {"true": 0.5, "false": 0.5}
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
