from __future__ import annotations

import pytest
from benchmark_layouts import CAPTION, pictures, write

from padapter.data import check_data, load_data
from padapter.errors import UserError


def record(image, number, references=(), **more):
    text = {"caption_str": references[number], "reference_strs": list(references)} if references else {}
    return {"caption_id": number, "image_id": image, "image_path": f"train/{image}.jpg", **text, **more}


ONE, TWO = ("A sign says STOP.", "a stop sign"), ("A cup with 12 on it.", "cup twelve")


@pytest.fixture
def root(tmp_path):
    """0123456789012345 looks like a number, 00e1 like a float."""
    first, second = "0123456789012345", "00e1"
    write(
        tmp_path / "TextCaps_0.1_train.json",
        {"dataset_type": "train", "data": [record(first, 0, ONE), record(second, 1, TWO), record(first, 1, ONE),
         record(second, 0, TWO)]},
    )  # fmt: skip
    write(tmp_path / "TextCaps_0.1_val.json", {"data": [record("ff0a", 0, TWO)]})
    write(tmp_path / "TextCaps_0.1_test.json", {"data": [record("aa", 0)]})
    pictures(tmp_path / "train_images", f"{first}.jpg", f"{second}.jpg", "ff0a.jpg")
    pictures(tmp_path / "test_images", "aa.jpg")
    return tmp_path


def test_one_row_per_picture_with_hexadecimal_ids(root):
    data = load_data(f"textcaps:{root}", CAPTION, split="train").dataset
    assert data["id"][:] == ["0123456789012345", "00e1"]
    assert data["captions"][:] == [list(ONE), [TWO[1], TWO[0]]]
    assert data[0]["image"]["path"] == f"{root}/train_images/0123456789012345.jpg"


def test_validation_pictures_lie_among_those_of_training_and_all_references_count(root):
    data = load_data(f"textcaps:{root}", CAPTION, split="validation").dataset
    assert data["captions"][:] == [list(TWO)]
    assert data[0]["image"]["path"] == f"{root}/train_images/ff0a.jpg"
    report = check_data(f"textcaps:{root}", CAPTION)
    assert report.ok
    assert not any("without annotation" in note for note in report.notes)


def test_test_has_no_captions(root):
    with pytest.raises(UserError, match="TextCaps test are not public"):
        load_data(f"textcaps:{root}", CAPTION, split="test")
    assert check_data(f"textcaps:{root}", CAPTION, split="test").good == 1


def test_an_id_that_became_a_number_is_refused(root):
    write(root / "TextCaps_0.1_val.json", {"data": [record("ff0a", 0, TWO), record(123, 0, TWO)]})
    (problem,) = check_data(f"textcaps:{root}", CAPTION, split="val").problems
    assert "record 2: image_id is 123, not a hexadecimal text" in str(problem)
