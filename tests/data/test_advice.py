"""What is no data yet is met with the command that makes data of it; names that are nearly right with the right one."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from data_cases import CAPTION, VQA, picture, vqa_file, vqa_row, write_jsonl

from padapter.data import check_data, infer_task
from padapter.errors import UserError
from padapter.importers import IMPORTERS
from padapter.tasks import TASKS

TABLE = "file;question;answer\na.png;Is it?;yes\nb.png;Is it?;no\n"


def told(path) -> str:
    """The message of a check whose task is not named."""
    with pytest.raises(UserError) as refusal:
        infer_task(str(path), TASKS.values())
    return str(refusal.value)


def obey(message: str) -> None:
    """Run the importer whose command a message gives, word for word; the result passes the check."""
    words = shlex.split(re.search(r"`padapter data from-(.*?)`", message)[1])
    options = {name.removeprefix("--"): value for name, value in zip(words[3::2], words[4::2], strict=True)}
    done = IMPORTERS[words[0]](words[1], words[2], **options)
    assert done.report.ok
    assert sum(done.rows.values()) == 2
    assert check_data(words[2], TASKS[done.task]).ok


@pytest.fixture
def folder(tmp_path):
    """A folder whose name needs quotation marks, with pictures a.png and b.png."""
    root = tmp_path / "my pictures"
    picture(root / "a.png", "red")
    picture(root / "b.png", "blue")
    return root


@pytest.mark.parametrize("name", ["table.csv", "table.tsv"])
def test_a_table(folder, name):
    (folder / name).write_text(TABLE)
    message = told(folder)
    assert f"makes data of {name}" in message
    obey(message)


def test_a_table_of_foreign_columns(folder):
    table = folder / "table.csv"
    table.write_text(TABLE.replace("file;question", "picture;query"))
    message = told(table)
    assert "it fits no task by its fields: answer, picture, query." in message
    obey(message)


@pytest.mark.parametrize("name", ["table.csv", "train.csv"])
def test_a_table_without_the_column_of_pictures(folder, name):
    (folder / name).write_text(TABLE)
    (problem,) = check_data(str(folder / name), VQA).problems
    assert problem.message.startswith("no row has the field 'image'; fields found: answer, file, question. ")
    obey(problem.message)


def test_a_list_of_foreign_columns(folder):
    write_jsonl(folder / "rows.jsonl", [{"image": f"{name}.png", "text": "A square."} for name in "ab"])
    obey(told(folder / "rows.jsonl"))


def test_a_table_with_the_suffix_of_another_kind(folder):
    (folder / "table.tsv").write_text(TABLE)
    obey(told(folder / "table.tsv"))
    (folder / "table.xlsx").write_bytes(b"PK")
    assert "Save it as table.csv; `padapter data from-csv" in told(folder / "table.xlsx")
    (folder / "all.tar").write_bytes(b"")
    assert f"wds:{folder}/all.tar" in told(folder / "all.tar")


@pytest.mark.parametrize("place", [".", "train"])
def test_class_folders(tmp_path, place):
    picture(tmp_path / "birds" / place / "old_owl" / "1.png", "red")
    picture(tmp_path / "birds" / place / "wren" / "2.png", "blue")
    message = told(tmp_path / "birds")
    assert "one folder per class" in message
    obey(message)


def test_texts_beside_pictures(folder):
    (folder / "a.txt").write_text("A red square.")
    (folder / "b.txt").write_text("A blue square.")
    obey(told(folder))


def test_pictures_alone(folder):
    assert "It holds pictures and no texts" in told(folder)


def test_an_empty_folder_is_told_what_data_are(tmp_path):
    assert "Data are a .jsonl, .json or .csv file" in told(tmp_path)


def test_a_folder_with_another_split_is_not_sent_elsewhere(folder):
    vqa_file(folder)
    (folder / "table.csv").write_text(TABLE)
    with pytest.raises(UserError, match=r"has no split 'test'.*a file can be named itself\.$"):
        infer_task(str(folder), TASKS.values(), split="test")


def test_a_benchmark(tmp_path):
    questions = {"questions": [{"question": "What?", "question_id": 1000, "image_id": 1}]}
    (tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json").write_text(json.dumps(questions))
    assert f"It looks like VQA v2.0 as distributed: `padapter data check vqav2:{tmp_path}` reads it." in told(tmp_path)


def test_half_a_benchmark(tmp_path):
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text("{}")
    assert f"vqav2:{tmp_path}" in told(tmp_path)


@pytest.mark.parametrize("rest", ["nowhere", "."])
def test_a_wrong_folder_of_a_benchmark_does_not_speak_of_tasks(tmp_path, monkeypatch, rest):
    monkeypatch.chdir(tmp_path)
    spec = f"vqav2:{rest}"
    with pytest.raises(UserError) as refusal:
        check_data(spec, infer_task(spec, TASKS.values()))
    assert "--task" not in str(refusal.value)


@pytest.mark.parametrize(
    ("header", "wrong", "meant"),
    [("image,question,answr", "answr", "answer"), ("image,question,Answers", "Answers", "answers"),
     ("images,question,answer", "images", "image")],
)  # fmt: skip
def test_a_mistyped_column(tmp_path, header, wrong, meant):
    (tmp_path / "rows.csv").write_text(f"{header}\na.png,What?,yes\n")
    (problem,) = check_data(str(tmp_path / "rows.csv"), VQA).problems
    assert problem.message.endswith(f"Is {wrong!r} meant to be {meant!r}? Rename it.")


def test_a_mistyped_column_that_the_task_is_told_by(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"image": "a.png", "captoin": "A cat."}])
    assert "Is 'captoin' meant to be 'caption'? Rename it. Or else name the task" in told(tmp_path / "rows.jsonl")


def test_a_mistyped_optional_field_is_a_note(tmp_path):
    path = vqa_file(tmp_path, vqa_row(wieght=0.2, patient="x"))
    assert "fields that are not used: patient, wieght (is weight meant?)" in check_data(str(path), VQA).notes


def test_data_of_another_task_have_no_mistyped_field(tmp_path):
    (problem,) = check_data(str(vqa_file(tmp_path)), CAPTION).problems
    assert "is this data for another task?" in problem.message
    assert "meant" not in problem.message
