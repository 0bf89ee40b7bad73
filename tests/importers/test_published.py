from __future__ import annotations

import json

import pytest
from import_cases import picture

from padapter.data import check_data, load_data
from padapter.errors import UserError
from padapter.importers import IMPORTERS
from padapter.tasks import get_task

VQA, ENTAILMENT = get_task("vqa"), get_task("entailment")


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
    done = IMPORTERS["vqa-rad"](vqa_rad, tmp_path / "out")
    assert done.rows == {"train": 3, "test": 2}
    assert done.left_out.counts == {"answers cannot be used": 1, "picture not found": 1}
    assert "train: 3 rows" in done.format()
    assert "left out: 1 (picture not found)" in done.format()
    assert check_data(str(tmp_path / "out"), VQA).ok
    train = load_data(str(tmp_path / "out"), VQA).dataset
    assert train["answers"][:] == [["2"], ["2"], ["left\u00a0lung \u2013 r\u00f6ntgen"]]
    test = load_data(str(tmp_path / "out"), VQA, split="test").dataset
    assert test["answer_type"][:] == ["CLOSED", "OPEN"]
    assert test["question_type"][:] == ["COUNT", None]
    with pytest.raises(UserError, match="has no split 'validation'"):
        load_data(str(tmp_path / "out"), VQA, split="validation")


def test_the_result_does_not_depend_on_the_source(vqa_rad, tmp_path):
    IMPORTERS["vqa-rad"](vqa_rad / "VQA_RAD Dataset Public.json", tmp_path / "out")
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
    done = IMPORTERS["nlvr"](tmp_path / "dev", tmp_path / "out")
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


@pytest.mark.parametrize("name", list(IMPORTERS))
def test_sources_that_are_none(tmp_path, name):
    options = {"question": "What?"} if name == "folder" else {}
    with pytest.raises(UserError, match="no such file or folder"):
        IMPORTERS[name](tmp_path / "missing", tmp_path / "out", **options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"expected one file .*found none|holds no pictures"):
        IMPORTERS[name](tmp_path / "empty", tmp_path / "out", **options)
    (tmp_path / "other.json").write_text('[{"a": 1}]')
    with pytest.raises(
        UserError, match=r"not an NLVR file|COCO layout|nothing to write|has no rows|which column|is a file"
    ):
        IMPORTERS[name](tmp_path / "other.json", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_earlier_result_is_not_overwritten(vqa_rad, tmp_path):
    IMPORTERS["vqa-rad"](vqa_rad, tmp_path / "out")
    with pytest.raises(UserError, match=r"holds train\.jsonl already"):
        IMPORTERS["vqa-rad"](vqa_rad, tmp_path / "out")
