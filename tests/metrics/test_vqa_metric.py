from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from padapter.errors import UserError
from padapter.metrics import (
    EXACT_MATCH,
    OFFICIAL,
    choose_vqa_rule,
    exact_match,
    normalise_answer,
    score_vqa,
    vqa_accuracy,
)

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name: str):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "count"), [("vqa_real.json", 550), ("vqa_edge.json", 65)])
def test_official_accuracy_of_every_recorded_question(name, count):
    recorded = load(name)
    questions = recorded["questions"]
    assert len(questions) == count
    scores = score_vqa(
        {key: prediction for key, _, _, prediction, _ in questions},
        {key: answers for key, _, answers, _, _ in questions},
        groups={key: answer_type for key, answer_type, *_ in questions},
    )
    assert scores.rule == OFFICIAL
    differing = {
        key: expected for key, *_, expected in questions if round(100 * scores.per_question[key], 2) != expected
    }
    assert differing == {}
    assert round(100 * scores.accuracy, 2) == recorded["overall"]
    assert {group: round(100 * value, 2) for group, value in scores.groups.items()} == recorded["perAnswerType"]


def test_normaliser_on_every_recorded_pair():
    pairs = load("vqa_normalise.json")
    assert len(pairs) == 367
    assert [
        (text, normalise_answer(text), expected) for text, expected in pairs if normalise_answer(text) != expected
    ] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,000-ish", "1000ish"),  # digit-comma-digit deletes every mark
        ("yes/no", "yes no"),
        ("rock - n-roll", "rock nroll"),  # one spaced hyphen deletes both
        ("a.m.", "am"),
        ("3.5", "3.5"),
        ("v1.0.", "v1.0"),
        ("None", "0"),
        ("eleven", "eleven"),
        ("The", ""),
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),
        ("its", "its"),
        ("don\u2019t", "don\u2019t"),
        ("a." * 33, "a" * 33 + "."),  # at most 32 full stops go
    ],
)
def test_normaliser_oddities(text, expected):
    assert normalise_answer(text) == expected


def literal_accuracy(prediction: str, answers: list[str]) -> float:
    """The leave-one-out definition, annotator by annotator, on texts that need no normalising."""
    marks = []
    for left_out in range(len(answers)):
        others = answers[:left_out] + answers[left_out + 1 :]
        marks.append(min(1.0, sum(answer == prediction for answer in others) / 3))
    return sum(marks) / len(marks)


@given(st.lists(st.sampled_from(["red", "blue", "green"]), min_size=1, max_size=12), st.sampled_from(["red", "blue"]))
def test_closed_form_is_the_leave_one_out_mean(answers, prediction):
    assert vqa_accuracy(prediction, answers) == pytest.approx(literal_accuracy(prediction, answers), abs=1e-12)


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text):
    once = normalise_answer(text)
    assert normalise_answer(once) == once


def test_unanimous_answers_are_matched_exactly():
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0
    assert vqa_accuracy("yes ", ["yes"] * 10) == 1
    assert vqa_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1


@pytest.mark.parametrize(("k", "best"), [(1, 0), (2, 1 / 3), (3, 2 / 3), (4, 1), (10, 1)])
def test_the_official_rule_caps_small_numbers_of_answers(k, best):
    assert vqa_accuracy("red", ["red"] * k) == pytest.approx(best)


@pytest.mark.parametrize(
    ("counts", "rule"),
    [([10, 10], OFFICIAL), ([4, 10], OFFICIAL), ([3, 10], EXACT_MATCH), ([1, 1], EXACT_MATCH), ([], EXACT_MATCH)],
)
def test_rule_by_number_of_answers(counts, rule):
    assert choose_vqa_rule(counts) == rule


def test_exact_match_is_normalised_and_takes_any_answer():
    assert exact_match("The Left lung.", ["left lung"]) == 1
    assert exact_match("2", ["two", "three"]) == 1
    assert exact_match("right", ["left"]) == 0


def test_the_rule_stands_beside_the_number():
    scores = score_vqa({"1": "Two"}, {"1": ["2"]})
    assert (scores.accuracy, scores.rule) == (1.0, EXACT_MATCH)
    assert score_vqa({"1": "Two"}, {"1": ["2"]}, rule=OFFICIAL).accuracy == 0


@pytest.mark.parametrize(
    ("predictions", "answers", "words"),
    [
        ({"1": "x"}, {"1": ["x"], "2": ["y"]}, "1 items have no prediction \\('2'\\)"),
        ({"1": "x", "3": "x"}, {"1": ["x"]}, "1 predictions belong to no item \\('3'\\)"),
        ({}, {}, "nothing to score"),
        ({"1": "x"}, {"1": []}, "at least one human answer"),
    ],
)
def test_refuses_what_cannot_be_scored(predictions, answers, words):
    with pytest.raises(UserError, match=words):
        score_vqa(predictions, answers)


def test_refuses_an_unknown_rule():
    with pytest.raises(UserError, match="vqa-official-2021, exact-match-normalised"):
        score_vqa({"1": "x"}, {"1": ["x"]}, rule="strict")
