from __future__ import annotations

import json

import pytest
from data_cases import CAPTION, ENTAILMENT, VQA, picture

from padapter.data import CONVERTERS, check_data, load_data
from padapter.errors import UserError


def rad_row(qid, **changes):
    return {
        "qid": qid,
        "phrase_type": "freeform",
        "image_name": "synpic1.jpg",
        "question": "How many kidneys are there?",
        "question_rephrase": "NULL",
        "question_type": "COUNT",
        "answer": 2,
        "answer_type": "OPEN",
    } | changes


@pytest.fixture
def vqa_rad(tmp_path):
    folder = tmp_path / "VQA RAD"
    picture(folder / "VQA_RAD Image Folder" / "synpic1.jpg")
    picture(folder / "VQA_RAD Image Folder" / "unreferenced.jpg")
    rows = [
        rad_row(1),
        rad_row(2, phrase_type="test_freeform", answer="Yes", answer_type="CLOSED "),
        rad_row(3, phrase_type="test_para", question_type="NULL"),
        rad_row(4, answer="NULL"),
        rad_row(5, image_name="missing.jpg"),
        rad_row(6, image_name="../VQA_RAD Image Folder/synpic1.jpg"),
        rad_row(7, answer="left\u00a0lung \u2013 r\u00f6ntgen"),
    ]
    del rows[0]["question_rephrase"]
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return folder


def test_vqa_rad(vqa_rad, tmp_path):
    done = CONVERTERS["vqa-rad"](vqa_rad, tmp_path / "out")
    assert done.rows == {"train": 2, "test": 2}
    assert done.left_out == {"a value is missing": 1, "image not found": 2}
    assert "train: 2 rows" in done.format()
    assert "left out: 2 (image not found)" in done.format()
    assert check_data(str(tmp_path / "out"), VQA).ok
    train = load_data(str(tmp_path / "out"), VQA).dataset
    assert train["answers"][:] == [["2"], ["left\u00a0lung \u2013 r\u00f6ntgen"]]
    test = load_data(str(tmp_path / "out"), VQA, split="test").dataset
    assert test["answer_type"][:] == ["CLOSED", "OPEN"]
    assert test["question_type"][:] == ["COUNT", None]
    with pytest.raises(UserError, match="has no split 'validation'"):
        load_data(str(tmp_path / "out"), VQA, split="validation")


def test_the_result_does_not_depend_on_the_source(vqa_rad, tmp_path):
    CONVERTERS["vqa-rad"](vqa_rad / "VQA_RAD Dataset Public.json", tmp_path / "out")
    for path in sorted(vqa_rad.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "out").rename(tmp_path / "moved")
    assert check_data(str(tmp_path / "moved"), VQA).ok


def test_nlvr(tmp_path):
    rows = []
    for n in range(20):
        for m in range(3):
            identifier = f"{n}-{m}"
            picture(tmp_path / "dev" / "images" / str(n % 2) / f"dev-{identifier}-0.png")
            label = "true" if m else "false"
            rows.append(
                {"sentence": f"Sentence {n}", "identifier": identifier, "label": label, "directory": str(n % 2)}
            )
    (tmp_path / "dev" / "dev.json").write_text("\n".join(map(json.dumps, rows)))
    done = CONVERTERS["nlvr"](tmp_path / "dev", tmp_path / "out")
    assert done.rows == {"train": 36, "validation": 12, "test": 12}
    groups = {}
    for split in done.rows:
        data = load_data(str(tmp_path / "out"), ENTAILMENT, split=split).dataset
        groups[split] = {identifier.split("-")[0] for identifier in data["id"]}
        assert set(data["label"]) == {"true", "false"}
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    assert not groups["validation"] & groups["test"]
    assert ENTAILMENT.candidates(data) == ["false", "true"]


@pytest.mark.parametrize(
    ("name", "splits"), [("captions_val2017.json", {"validation"}), ("captions_train.json", {"train"})]
)
def test_coco_captions(tmp_path, name, splits):
    content = {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg"} for n in (1, 2, 3)],
        "annotations": [{"id": 10 + n, "image_id": n % 2 + 1, "caption": f"Caption {n} "} for n in range(5)],
    }
    for n in (1, 2, 3):
        picture(tmp_path / "coco" / "val2017" / f"{n:012d}.jpg")
    (tmp_path / "coco" / name).write_text(json.dumps(content))
    done = CONVERTERS["coco-captions"](tmp_path / "coco" / name, tmp_path / "out")
    assert set(done.rows) == splits
    assert done.left_out == {"a value is missing": 1}  # image 3 has no caption
    data = load_data(str(tmp_path / "out"), CAPTION, split=splits.pop()).dataset
    assert data["id"][:] == ["1", "2"]
    assert data["captions"][:] == [["Caption 0", "Caption 2", "Caption 4"], ["Caption 1", "Caption 3"]]


def test_coco_captions_without_a_split_in_the_name(tmp_path):
    content = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(60)],
        "annotations": [{"id": n, "image_id": n, "caption": "A thing."} for n in range(60)],
    }
    for n in range(60):
        picture(tmp_path / "coco" / "images" / f"{n}.png")
    (tmp_path / "coco" / "captions.json").write_text(json.dumps(content))
    rows = CONVERTERS["coco-captions"](tmp_path / "coco", tmp_path / "out").rows
    assert sum(rows.values()) == 60
    assert rows["train"] > rows["test"] > 3
    assert rows["validation"] > 3


@pytest.mark.parametrize("name", list(CONVERTERS))
def test_sources_that_are_none(tmp_path, name):
    with pytest.raises(UserError, match="no such file or folder"):
        CONVERTERS[name](tmp_path / "missing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"expected one file .*found none"):
        CONVERTERS[name](tmp_path / "empty", tmp_path / "out")
    (tmp_path / "other.json").write_text('[{"a": 1}]')
    with pytest.raises(UserError, match=r"not an NLVR file|COCO layout|no usable row"):
        CONVERTERS[name](tmp_path / "other.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_earlier_result_is_not_overwritten(vqa_rad, tmp_path):
    CONVERTERS["vqa-rad"](vqa_rad, tmp_path / "out")
    with pytest.raises(UserError, match=r"holds train\.jsonl, test\.jsonl already"):
        CONVERTERS["vqa-rad"](vqa_rad, tmp_path / "out")
