"""Rows of a benchmark without a word are scored as officially; own data keep the check; nobody learns from nothing."""

from __future__ import annotations

import pytest
from benchmark_layouts import CAPTION, VQA, annotation, pictures, question, vqa_part, write

from padapter.comparison.splits import _split
from padapter.data import check_data, load_data
from padapter.data.schema import asked_fields, parse_row
from padapter.data.shards.write import write_shards
from padapter.errors import UserError
from padapter.evaluation.submit.convert import submit
from padapter.options import SubmitOptions
from padapter.tasks.unanswered import unanswered

QUESTIONS = ["What is it?", "???", "", " \n "]
ANSWERS = ["red", "red", "red", "red", ""]


@pytest.fixture
def vqa(tmp_path):
    """Four questions, three of them without a word, and one whose ten answers are empty; val and test2015 alike."""
    root = tmp_path / "vqa"
    texts = [*QUESTIONS, "What else?"]
    asked = [question(1, number, text) for number, text in enumerate(texts)]
    answered = [annotation(1, number, answer) for number, answer in enumerate(ANSWERS)]
    vqa_part(root, "val2014", asked, answered)
    vqa_part(root, "test2015", asked)
    for part in ("val2014", "test2015"):
        pictures(root / part, f"COCO_{part}_000000000001.jpg")
    return root


def test_every_question_id_is_scored(vqa):
    data = load_data(f"vqav2:{vqa}", VQA, split="val")
    assert data.dataset["id"][:] == ["1000", "1001", "1002", "1003", "1004"]
    assert [VQA.prompt(row) for row in data.dataset] == ["what is it?", "?", "?", "?", "what else?"]
    assert "3 rows: no words in 'question' (kept: the official scoring counts every row)" in data.report.notes
    assert check_data(f"vqav2:{vqa}", VQA, split="val").ok
    assert _split(f"vqav2:{vqa}", "val", "vqa").problem == ""


def test_training_leaves_out_what_nobody_can_learn_and_counts_it(vqa):
    data = load_data(f"vqav2:{vqa}", VQA, split="val", for_training=True)
    assert data.dataset["id"][:] == ["1000", "1001", "1002", "1003"]
    assert "1 rows: no words in 'answers', nothing to learn, left out" in data.report.notes
    assert data.report.dropped == 1
    assert all(VQA.targets(row) for row in data.dataset)


def test_shards_keep_them(vqa, tmp_path):
    write_shards(f"vqav2:{vqa}", tmp_path / "shards", VQA, split="val")
    packed, plain = (load_data(spec, VQA, split="val") for spec in (str(tmp_path / "shards"), f"vqav2:{vqa}"))
    assert packed.fingerprint == plain.fingerprint
    assert packed.dataset["id"][:] == plain.dataset["id"][:]


def test_a_file_for_the_server_answers_them(vqa, tmp_path):
    task = unanswered(VQA)
    ids = load_data(f"vqav2:{vqa}", task, split="test").dataset["id"][:]
    lines = [f'{{"id": "{key}", "text": "yes"}}\n' for key in ids]
    (tmp_path / "said.jsonl").write_text("".join(lines))
    options = SubmitOptions(
        predictions=str(tmp_path / "said.jsonl"), data=f"vqav2:{vqa}", output=str(tmp_path / "server.json")
    )
    assert submit(options).entries == 5


def test_captions_without_words(tmp_path):
    images = [{"id": key, "file_name": f"COCO_val2014_{key:012d}.jpg"} for key in (1, 2, 3)]
    captions = ["A cat.", "...", None]
    annotations = [{"id": n, "image_id": n, "caption": text} for n, text in enumerate(captions, 1)]
    write(tmp_path / "captions_val2014.json", {"images": images, "annotations": annotations})
    pictures(tmp_path / "val2014", *(image["file_name"] for image in images))
    scored = load_data(f"coco:{tmp_path}", CAPTION, split="val").dataset
    assert scored["captions"][:] == [["A cat."], ["..."], [""]]
    learnt = load_data(f"coco:{tmp_path}", CAPTION, split="val", for_training=True).dataset
    assert learnt["captions"][:] == [["A cat."]]


@pytest.mark.parametrize("text", QUESTIONS[1:])
def test_own_questions_need_words(text):
    assert [name for name, _ in parse_row({"question": text}, asked_fields(VQA.fields)).problems] == ["question"]


def test_what_is_not_there_is_a_problem_of_benchmarks_too(vqa):
    asked = [{**question(1, 0), "question": None}]
    vqa_part(vqa, "val2014", asked, [annotation(1, 0, "red")])
    with pytest.raises(UserError, match="record 1: question: is missing or empty"):
        load_data(f"vqav2:{vqa}", VQA, split="val")
