"""Folders of pictures: texts beside them, class folders, metadata."""

from __future__ import annotations

import json

import pytest
from import_cases import converted, every, picture, pictures, write

from padapter.errors import UserError


def test_texts_beside_pictures(tmp_path):
    pictures(tmp_path / "src", 4, ".jpg")
    pictures(tmp_path / "src" / "deep", 1)
    for number, text in enumerate(["a cat", "a dog \n\nanother line\n", "\ufeffa cow"]):
        write(tmp_path / "src" / f"{number}.txt", text)
    write(tmp_path / "src" / "deep" / "0.caption", "below")
    done, rows = converted("folder", tmp_path / "src", tmp_path / "src" / "out", test=0)
    assert sorted(row["captions"] for row in every(rows)) == [
        ["a cat"],
        ["a cow"],
        ["a dog", "another line"],
        ["below"],
    ]
    assert done.left_out.counts == {"the picture has no text beside it": 1}
    # A second time, the pictures of the first result are no source.
    again, _ = converted("folder", tmp_path / "src", tmp_path / "src" / "out", test=0, overwrite=True)
    assert (again.rows, again.left_out.counts) == (done.rows, done.left_out.counts)


def test_class_folders_need_the_question(tmp_path):
    for name in ("golden_retriever", "cat"):
        pictures(tmp_path / "src" / name, 3)
    with pytest.raises(UserError, match=r'folders \(cat, golden_retriever\).*--question "What is it'):
        converted("folder", tmp_path / "src", tmp_path / "out")
    done, rows = converted("folder", tmp_path / "src", tmp_path / "out", question="What animal is it?")
    assert done.task == "vqa"
    assert {row["question"] for row in every(rows)} == {"What animal is it?"}
    for row in every(rows):
        assert row["answers"] == [row["image"].split("/")[1].replace("_", " ")]


def test_folders_of_splits(tmp_path):
    for place, split in enumerate(("train", "val", "test")):
        for other, name in enumerate(("cat", "dog")):
            picture(tmp_path / "src" / split / name / "x.png", 10 * place + other)
    done, rows = converted("folder", tmp_path / "src", tmp_path / "out", question="What is it?")
    assert done.rows == {"train": 2, "validation": 2, "test": 2}
    assert [row["image"] for row in rows["validation"]] == ["images/val/cat/x.png", "images/val/dog/x.png"]
    # Shares on the command line win.
    done, _ = converted("folder", tmp_path / "src", tmp_path / "all", question="What is it?", test=0, validation=0)
    assert done.rows == {"train": 6}


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_metadata_with_other_names(tmp_path, form):
    pictures(tmp_path / "src" / "train", 2)
    if form == "csv":
        write(tmp_path / "src" / "metadata.csv", "file_name,text\ntrain/0.png,One.\ntrain/1.png,Two.\n")
    else:
        lines = [{"file_name": f"train/{n}.png", "text": text} for n, text in enumerate(("One.", "Two."))]
        write(tmp_path / "src" / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
    done, rows = converted("folder", tmp_path / "src", tmp_path / "out", split="train")
    assert done.task == "caption"
    assert [row["captions"] for row in rows["train"]] == [["One."], ["Two."]]


def test_metadata_in_folders_of_splits(tmp_path):
    for number, split in enumerate(("train", "test")):
        picture(tmp_path / "src" / split / "a.png", number)
        write(tmp_path / "src" / split / "metadata.csv", f"file_name,text\na.png,{split}\n")
    _, rows = converted("folder", tmp_path / "src", tmp_path / "out")
    assert {split: row["captions"] for split, [row] in rows.items()} == {"train": ["train"], "test": ["test"]}


def test_folders_with_nothing_to_learn_from(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        converted("folder", tmp_path / "none", tmp_path / "out")
    (tmp_path / "src").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        converted("folder", tmp_path / "src", tmp_path / "out")
    pictures(tmp_path / "src", 2)
    with pytest.raises(UserError, match="holds 2 pictures without a text"):
        converted("folder", tmp_path / "src", tmp_path / "out")
    with pytest.raises(UserError, match=r"--images: .*missing: no such folder"):
        converted("folder", tmp_path / "src", tmp_path / "out", images=str(tmp_path / "missing"))
    (tmp_path / "src" / "0.txt").write_bytes(b"\xff\xfa")
    with pytest.raises(UserError, match=r"0\.txt: is not UTF-8"):
        converted("folder", tmp_path / "src", tmp_path / "out")
    assert not (tmp_path / "out").exists()
