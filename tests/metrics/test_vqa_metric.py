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
    OFFICIAL_PRE_2021,
    VIZWIZ_LEAVE_ONE_OUT,
    VIZWIZ_RELEASED,
    VQA_RULES,
    choose_vqa_rule,
    exact_match,
    normalise_answer,
    score_vqa,
    vqa_accuracy,
)
from padapter.metrics.vqa import group_means

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name: str):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def percent(fraction: float) -> float:
    """A score as the official programs report it."""
    return round(100 * fraction, 2)


@pytest.mark.parametrize(("name", "count"), [("vqa_real.json", 550), ("vqa_edge.json", 65)])
@pytest.mark.parametrize("rule", [OFFICIAL, OFFICIAL_PRE_2021])
def test_official_accuracy_of_every_recorded_question(name, count, rule):
    recorded = load(name)
    questions = {key: rest for key, *rest in recorded["questions"]}
    assert len(questions) == count
    answers = {key: answers for key, (_, _, answers, *_) in questions.items()}
    scores = score_vqa({key: said for key, (_, _, _, said, *_) in questions.items()}, answers, rule=rule)
    assert scores.rule == rule
    column = 4 if rule == OFFICIAL else 5
    assert {key: percent(score) for key, score in scores.per_question.items()} == {
        key: rest[column] for key, rest in questions.items()
    }
    if rule == OFFICIAL_PRE_2021:
        assert percent(scores.accuracy) == recorded["overall_pre2021"]
        return
    assert percent(scores.accuracy) == recorded["overall"]
    for column, name in enumerate(("perQuestionType", "perAnswerType")):
        groups = {key: rest[column] for key, rest in questions.items()}
        means = group_means(scores.per_question, groups)
        assert {group: percent(mean) for group, mean in means.items()} == recorded[name]


@pytest.mark.parametrize("rule", [VIZWIZ_RELEASED, VIZWIZ_LEAVE_ONE_OUT])
def test_every_recorded_image_of_vizwiz(rule):
    recorded = load("vqa_vizwiz.json")
    images = {key: rest for key, *rest in recorded["images"]}
    assert len(images) == 150
    answers = {key: answers for key, (_, answers, *_) in images.items()}
    kinds = {key: kind for key, (kind, *_) in images.items()}
    scores = score_vqa({key: said for key, (_, _, said, *_) in images.items()}, answers, rule=rule, groups=kinds)
    column = 3 if rule == VIZWIZ_RELEASED else 4
    assert {key: percent(score) for key, score in scores.per_question.items()} == {
        key: rest[column] for key, rest in images.items()
    }
    if rule == VIZWIZ_LEAVE_ONE_OUT:
        assert percent(scores.accuracy) == recorded["overall_leave_one_out"]
        return
    assert percent(scores.accuracy) == recorded["overall"]
    assert {group: percent(mean) for group, mean in scores.groups.items()} == recorded["perAnswerType"]


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


LEAVE_ONE_OUT = (OFFICIAL, OFFICIAL_PRE_2021, VIZWIZ_LEAVE_ONE_OUT)


@pytest.mark.parametrize("rule", LEAVE_ONE_OUT)
@given(
    answers=st.lists(st.sampled_from(["red", "blue", "green"]), min_size=1, max_size=12),
    prediction=st.sampled_from(["red", "blue"]),
)
def test_closed_form_is_the_leave_one_out_mean(rule, answers, prediction):
    assert VQA_RULES[rule](prediction, answers) == pytest.approx(literal_accuracy(prediction, answers), abs=1e-12)


# Texts that the passes treat specially, and any others.
TEXTS = st.one_of(
    st.sampled_from(
        ["", " ", "the", "?", "Yes", "yes.", "two", "2", "dont", "don\u2019t", "1,000-ish", "x\ny", "\ud83d"]
    ),
    st.text(max_size=12),
)


@pytest.mark.parametrize("rule", VQA_RULES)
@given(prediction=TEXTS, answers=st.lists(TEXTS, min_size=1, max_size=12), data=st.data())
def test_whatever_the_texts_a_score_is_a_fraction_and_the_order_of_annotators_is_nothing(
    rule, prediction, answers, data
):
    score = VQA_RULES[rule](prediction, answers)
    assert 0 <= score <= 1
    assert VQA_RULES[rule](prediction, data.draw(st.permutations(answers))) == score


@pytest.mark.parametrize("rule", VQA_RULES)
@given(answers=st.lists(TEXTS, min_size=1, max_size=12), others=st.lists(TEXTS, min_size=1, max_size=3), said=TEXTS)
def test_the_order_of_questions_is_nothing_and_each_is_scored_by_itself(rule, answers, others, said):
    forwards = score_vqa({"1": said, "2": said}, {"1": answers, "2": others}, rule=rule)
    backwards = score_vqa({"2": said, "1": said}, {"2": others, "1": answers}, rule=rule)
    assert forwards == backwards
    assert forwards.per_question == {"1": VQA_RULES[rule](said, answers), "2": VQA_RULES[rule](said, others)}
    assert forwards.accuracy == pytest.approx(sum(forwards.per_question.values()) / 2)


@given(matches=st.integers(0, 9), rest=st.integers(0, 9), rule=st.sampled_from([*LEAVE_ONE_OUT, VIZWIZ_RELEASED]))
def test_one_more_annotator_who_agrees_never_lowers_a_score(matches, rest, rule):
    answers = ["red"] * matches + ["blue"] * (rest + 1)
    more = ["red"] * (matches + 1) + ["blue"] * rest
    assert VQA_RULES[rule]("red", more) >= VQA_RULES[rule]("red", answers) - 1e-12


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text):
    once = normalise_answer(text)
    assert normalise_answer(once) == once


def test_unanimous_answers_are_matched_exactly():
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0
    assert vqa_accuracy("yes ", ["yes"] * 10) == 1
    assert vqa_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1


@pytest.mark.parametrize("rule", LEAVE_ONE_OUT)
@pytest.mark.parametrize(("k", "best"), [(1, 0), (2, 1 / 3), (3, 2 / 3), (4, 1), (10, 1)])
def test_leaving_one_out_caps_small_numbers_of_answers(rule, k, best):
    assert VQA_RULES[rule]("red", ["red"] * k) == pytest.approx(best)
    assert VQA_RULES[VIZWIZ_RELEASED]("red", ["red"] * k) == pytest.approx(min(1, k / 3))


def test_the_older_revision_cleans_only_punctuation_of_human_answers():
    older = VQA_RULES[OFFICIAL_PRE_2021]
    answers = ["none"] * 9 + ["hat"]
    assert (older("none", answers), vqa_accuracy("none", answers)) == (0, 1)  # the prediction becomes "0"
    assert (older("Yes.", ["yes"] * 10), vqa_accuracy("Yes.", ["yes"] * 10)) == (1, 0)
    assert older("t shirt", ["t-shirt"] * 9 + ["hat"]) == 1
    assert older("t shirt", ["t-shirt"] * 10) == 0


def test_vizwiz_compares_human_answers_as_they_are():
    released = VQA_RULES[VIZWIZ_RELEASED]
    assert released("Unanswerable.", ["unanswerable"] * 10) == 1
    assert released("don't know.", ["don't know."] * 10) == 0
    assert released("t-shirt- ", ["t shirt"] * 10) == 1  # stripped first: a mark beside a space would delete all
    # "dont" gets a typographic apostrophe, and so equals no answer; the official rule restores it.
    assert released("dont know", ["don't know"] * 10) == 0
    assert released("dont know", ["don\u2019t know"] * 10) == 1
    assert vqa_accuracy("dont know", ["don't know"] * 9 + ["no"]) == 1


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
    names = "vqa-official-2021, vqa-official-pre-2021, exact-match-normalised, vizwiz-released, vizwiz-leave-one-out"
    with pytest.raises(UserError, match=f"'strict'; there are: {names}"):
        score_vqa({"1": "x"}, {"1": ["x"]}, rule="strict")
