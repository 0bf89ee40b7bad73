"""Which task a data set is for, told from its fields."""

from __future__ import annotations

import pytest
from data_cases import vqa_file, vqa_row, write_jsonl

from padapter.data import infer_task
from padapter.errors import UserError
from padapter.tasks import TASKS


def infer(path, **options):
    return infer_task(str(path), TASKS.values(), **options).name


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"question": "What?", "answer": "x"}, "vqa"),
        ({"question": "What?"}, "vqa"),  # the check then says that answers are missing
        ({"hypothesis": "A thing.", "label": "true"}, "entailment"),
        ({"captions": ["A thing."]}, "caption"),
        ({"caption": "A thing."}, "caption"),
    ],
)
def test_one_field_decides(tmp_path, row, name):
    assert infer(write_jsonl(tmp_path / "rows.jsonl", [{"image": "a.png", **row}])) == name


def test_every_split_of_a_folder_counts_unless_one_is_named(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"image": "a.png", "caption": "A thing."}])
    vqa_file(tmp_path, name="test.jsonl")
    with pytest.raises(UserError, match="it could be vqa or caption by its fields: answer, caption, id, image, quest"):
        infer(tmp_path)
    assert infer(tmp_path, split="test") == "vqa"
    assert infer(tmp_path, split="train") == "caption"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            '{"image": "a.png", "text": "x"}',
            "it fits no task by its fields: image, text. `padapter data from-vqa .*Or else name the task with --task",
        ),
        ("[]", "has no rows; name the task with --task"),
        ("{broken", r"no row could be read \(line 1: .*; name the task with --task"),
        ("[{}]", "has no fields; name the task with --task"),
    ],
)
def test_where_no_field_decides_the_task_is_asked_for(tmp_path, content, words):
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(UserError, match=words) as refusal:
        infer(path)
    assert "vqa (question), entailment (hypothesis), caption (captions or caption)" in str(refusal.value)


def test_a_world_serves_every_task():
    with pytest.raises(UserError, match="shapes:source: a built-in world serves every task; name the task"):
        infer("shapes:source")


def test_nothing_there_is_said_as_ever(tmp_path):
    vqa_file(tmp_path, vqa_row())
    with pytest.raises(UserError, match="no such file"):
        infer(tmp_path / "trian.jsonl")
    with pytest.raises(UserError, match="has no split 'test'"):
        infer(tmp_path, split="test")
