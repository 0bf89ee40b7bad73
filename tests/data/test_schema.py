from __future__ import annotations

import pytest
from data_cases import CAPTION, ENTAILMENT, VQA
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.normalizers import BertNormalizer

from padapter.data.schema import clean_text, has_words, is_visible, parse_row


def parse(task, **row):
    return parse_row(row, task.fields)


def faults(task, **row):
    return dict(parse(task, **row).problems)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("cat", ["cat"]),
        (4, ["4"]),
        (4.0, ["4"]),
        (0, ["0"]),
        (2.5, ["2.5"]),
        (["yes", 2, None], ["yes", "2", ""]),  # an annotator's empty answer still counts among ten
        ("  two\nlines\t", ["two lines"]),
        ("NULL", ["NULL"]),
    ],
)
def test_answers_become_texts(answer, expected):
    for name in ("answer", "answers"):
        assert parse(VQA, question="What?", **{name: answer}).values["answers"] == expected


@pytest.mark.parametrize("answer", [None, "", [], " ", [None, ""], float("nan"), True, {"a": 1}, [["x"]], [False]])
def test_answers_that_are_none(answer):
    assert set(faults(VQA, question="What?", answers=answer)) == {"answers"}


UNSEEN = {"zero width": "\u200b\ufeff", "accent": "\u0301", "control": "\x80", "filler": "\u3164", "style": "\ufe0f"}


@pytest.mark.parametrize("answer", UNSEEN.values(), ids=UNSEEN)
def test_a_target_that_shows_nothing_is_a_problem_alone_and_empty_among_others(answer):
    assert faults(VQA, question="What?", answer=answer)["answer"].startswith("has no visible character: ")
    assert "no visible character" in faults(CAPTION, captions=[answer, ""])["captions"]
    assert set(faults(ENTAILMENT, hypothesis="It is.", label=answer)) == {"label"}
    row = parse(VQA, question="What?", answers=["x", answer, "x"])
    assert row.values["answers"] == ["x", answer, "x"]
    assert VQA.targets(row.values) == [("x", 1.0)]
    assert VQA.candidates([row.values]) == ["x"]
    assert row.notes == ["empty entries in 'answers' (kept for scoring, never a training target)"]


def test_what_a_tokenizer_for_lower_case_leaves_nothing_of_is_not_visible():
    leave = BertNormalizer(clean_text=True, handle_chinese_chars=False, strip_accents=True, lowercase=True)
    # U+1734 was an accent in older versions of Unicode, and is none in newer ones.
    letters = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000 and code != 0x1734]
    assert [letter for letter in letters if is_visible(letter) and not leave.normalize_str(letter).strip()] == []


@pytest.mark.parametrize("answer", ["?", "e\u0301", "\u2764\ufe0f", "\u093f\u0915", "a\u200bb", "$"])
def test_answers_that_show_are_targets(answer):
    assert VQA.targets(parse(VQA, question="What?", answer=answer).values) == [(answer, 1.0)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), (1, True), ("1", True), ("True ", True), (False, False), (0, False), ("0", False), (None, None)],
)
def test_flags(value, expected):
    assert parse(VQA, question="What?", answer="x", answerable=value).values["answerable"] is expected


@pytest.mark.parametrize("value", [2, "yes", " ", 0.5, float("nan"), [1], {}])
def test_flags_that_are_none(value):
    fault = faults(VQA, question="What?", answer="x", answerable=value)["answerable"]
    assert "expected true or false, or 1 or 0" in fault


def test_messages_say_what_was_found():
    assert "NaN" in faults(VQA, question="What?", answer=float("nan"))["answer"]
    assert 'write "yes"/"no"' in faults(VQA, question="What?", answer=True)["answer"]
    assert faults(VQA, question=7, answer="x") == {"question": "is the value (7); expected text"}
    assert faults(VQA, question="?!", answer="x") == {"question": 'has no words: the value ("?!")'}
    assert faults(VQA, question=" \n", answer="x") == {"question": "is only white space"}


def test_all_problems_of_a_row_are_reported():
    assert set(faults(VQA, id=1.5, question=None)) == {"id", "question", "answers"}


def test_empty_answers_leave_a_note():
    assert parse(VQA, question="What?", answers=["x", ""]).notes == [
        "empty entries in 'answers' (kept for scoring, never a training target)"
    ]


@pytest.mark.parametrize(
    ("raw", "expected"), [(7, "7"), ("7", "7"), (" 007 ", "007"), (2**63 + 1, "9223372036854775809"), (None, None)]
)
def test_ids_are_texts(raw, expected):
    assert parse(VQA, id=raw, question="What?", answer="x").id == expected


@pytest.mark.parametrize("raw", [True, 1.0, float("nan"), [1], "  "])
def test_ids_that_are_none(raw):
    assert set(faults(VQA, id=raw, question="What?", answer="x")) == {"id"}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [("entailment", "entailment"), (" Neutral ", "neutral"), ("false", "false"), (False, "false"), ("TRUE", "true")],
)
def test_labels_are_lower_case_names(raw, expected):
    assert parse(ENTAILMENT, hypothesis="It is.", label=raw).values["label"] == expected


@pytest.mark.parametrize("raw", [0, 1, "2", "-1", 1.0, None, "", " ", "?", ["x"]])
def test_labels_that_are_none(raw):
    assert set(faults(ENTAILMENT, hypothesis="It is.", label=raw)) == {"label"}


def test_a_dash_is_no_label():
    row = parse(ENTAILMENT, hypothesis="It is.", label=" - ")
    assert row.problems == []
    assert "no majority" in row.dropped


def test_captions_without_words_count_in_scoring_only():
    row = parse(CAPTION, captions=["A dog.", "", "...", None, "\u2028", "\U0001f600"])
    assert row.values["captions"] == ["A dog.", "", "...", "", "", "\U0001f600"]
    assert [text for text, _ in CAPTION.targets(row.values)] == ["a dog", "\U0001f600"]
    assert row.notes == ["empty entries in 'captions' (kept for scoring, never a training target)"]
    assert set(faults(CAPTION, captions=["", "!!", "~"])) == {"captions"}


@pytest.mark.parametrize(
    "caption", ["SHOUTING", "قطة على سجادة", "猫が座る", "word " * 70 + "end", "👍🏽 ok", "a  b"], ids=str.__len__
)
def test_odd_captions_pass_unchanged(caption):
    assert parse(CAPTION, caption=caption).values["captions"] == [caption]


def test_a_text_is_one_line_without_control_characters():
    assert clean_text("\ta\r\nb\u2028c\x00d\x85e \n") == "a  b c d e"


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_half_a_surrogate_pair_is_a_problem(text):
    assert "surrogate" in faults(VQA, question="What?", answer=text)["answer"]


def test_optional_fields():
    row = parse(VQA, question="What?", answer="x", question_type=3, answer_type=" CLOSED ")
    assert (row.values["question_type"], row.values["answer_type"]) == ("3", "CLOSED")
    assert parse(VQA, question="What?", answer="x", answer_type=" ").values["answer_type"] is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
names = ["id", "question", "answers", "answer", "hypothesis", "label", "caption", "captions", "answer_type"]


@given(st.dictionaries(st.sampled_from(names), json_values), st.sampled_from([VQA, ENTAILMENT, CAPTION]))
def test_any_json_is_either_clean_or_a_problem(row, task):
    parsed = parse_row(row, task.fields)
    if parsed.problems:
        assert all(message for _, message in parsed.problems)
        return
    for spec in task.fields:
        value = parsed.values[spec.name]
        texts = value if isinstance(value, list) else [value]
        assert texts
        for text in texts:
            assert text is None or clean_text(text) == text
        if spec.kind == "texts" and spec.words:
            assert any(has_words(text) for text in texts)
