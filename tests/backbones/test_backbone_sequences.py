from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from padapter.backbones.sequences import join, keep_right, pad_left, pad_right, training_tensors

START, END = 90, 91
IDS = st.lists(st.integers(1, 80), max_size=12)


def test_a_short_text_is_kept_whole():
    sequence = join([1, 2, 3], [4, 5], start=START, end=END, max_length=10)
    assert sequence.ids == [START, 1, 2, 3, 4, 5, END]
    assert sequence.start == 4
    assert not sequence.prompt_cut
    assert not sequence.target_cut


def test_a_long_prompt_loses_its_left_end_and_the_target_nothing():
    sequence = join([1, 2, 3], [4, 5], start=START, end=END, max_length=5)
    assert sequence.ids == [START, 3, 4, 5, END]
    assert sequence.prompt_cut
    assert not sequence.target_cut


def test_a_target_that_does_not_fit_alone_loses_the_end_token_with_its_end():
    sequence = join([1], [4, 5, 6], start=START, end=END, max_length=3)
    assert sequence.ids == [START, 4, 5]
    assert sequence.prompt_cut
    assert sequence.target_cut


@given(prompt=IDS, target=IDS.filter(bool), limit=st.integers(2, 20))
def test_length_labels_and_flags_agree(prompt, target, limit):
    sequence = join(prompt, target, start=START, end=END, max_length=limit)
    assert len(sequence.ids) <= limit
    tail = sequence.ids[sequence.start :]
    assert tail == [*target, END][: len(tail)]
    assert sequence.ids[0] == START
    assert prompt[len(prompt) - (sequence.start - 1) :] == sequence.ids[1 : sequence.start]
    assert sequence.target_cut == (tail != [*target, END])
    assert sequence.prompt_cut == (sequence.start - 1 < len(prompt))
    if sequence.prompt_cut or sequence.target_cut:
        assert len(sequence.ids) == limit  # nothing is cut while there is room


@pytest.mark.parametrize(("room", "expected"), [(0, []), (2, [2, 3]), (9, [1, 2, 3])])
def test_keep_right(room, expected):
    assert keep_right([1, 2, 3], room) == expected


def test_padding():
    assert pad_right([[1], [2, 3]], 0).tolist() == [[1, 0], [2, 3]]
    ids, mask = pad_left([[1], [2, 3]], 0)
    assert ids.tolist() == [[0, 1], [2, 3]]
    assert mask.tolist() == [[0, 1], [1, 1]]


def test_only_targets_carry_labels():
    sequences = [
        join([1, 2], [3], start=START, end=END, max_length=9),
        join([], [4], start=START, end=END, max_length=9),
    ]
    batch = training_tensors(sequences, pad=0)
    assert batch["input_ids"].tolist() == [[START, 1, 2, 3, END], [START, 4, END, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 3, END], [-100, 4, END, -100, -100]]
    assert batch["labels"].dtype == torch.long
