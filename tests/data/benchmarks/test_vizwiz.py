from __future__ import annotations

import pytest
from benchmark_layouts import CAPTION, VQA, golden, pictures, write

from padapter.data import check_data, load_data
from padapter.data.schemes import scheme_of
from padapter.errors import UserError

PRECANNED = "Quality issues are too severe to recognize visual content."


def name(split, number, digits=8):
    return f"VizWiz_{split}_{number:0{digits}d}.jpg"


def vqa_record(split, number, *answers, digits=8, **more):
    entries = [{"answer": answer, "answer_confidence": "yes"} for answer in answers]
    record = {"image": name(split, number, digits), "question": "What is this?"}
    return record | ({"answers": entries, "answer_type": "other", "answerable": 1} if answers else {}) | more


@pytest.fixture
def vqa(tmp_path):
    train = [
        vqa_record("train", 0, *["cup"] * 9, ""),
        vqa_record("train", 1, *["unanswerable"] * 10, answer_type="unanswerable", answerable=0),
    ]
    write(tmp_path / "Annotations" / "train.json", train)
    write(tmp_path / "Annotations" / "test.json", [vqa_record("test", 5)])
    pictures(tmp_path / "train", name("train", 0), name("train", 1))
    pictures(tmp_path / "test", name("test", 5))
    return tmp_path


def test_vqa(vqa):
    data = load_data(f"vizwiz-vqa:{vqa}", VQA, split="train")
    assert data.rule == "vizwiz-leave-one-out"
    assert data.dataset["id"][:] == [name("train", 0), name("train", 1)]
    assert data.dataset["answers"][:] == [["cup"] * 9 + [""], ["unanswerable"] * 10]
    assert data.dataset["answer_type"][:] == ["other", "unanswerable"]
    rows = scheme_of("vizwiz-vqa:").open(f"vizwiz-vqa:{vqa}", "vqa", "train", 0).rows
    assert [row.values["answerable"] for row in rows] == [1, 0]


@pytest.mark.parametrize(("written", "lying"), [(8, 12), (12, 8), (12, 12)])
def test_old_and_new_names_of_pictures(tmp_path, written, lying):
    write(tmp_path / "Annotations" / "val.json", [vqa_record("val", 42, "cup", digits=written)])
    pictures(tmp_path / "val", name("val", 42, lying))
    row = load_data(f"vizwiz-vqa:{tmp_path}", VQA, split="val").dataset[0]
    assert row["id"] == name("val", 42, written)  # the server expects the names of the annotations
    assert row["image"]["path"] == f"{tmp_path}/val/{name('val', 42, lying)}"


def test_vqa_test_has_no_answers(vqa):
    with pytest.raises(UserError, match="VizWiz-VQA test are not public"):
        load_data(f"vizwiz-vqa:{vqa}", VQA, split="test")
    report = check_data(f"vizwiz-vqa:{vqa}", VQA)
    assert report.ok, report.format()
    assert report.splits == {"train": 2, "test": 1}
    assert any(note.startswith("val: not here; missing val.json (https://vizwiz.org") for note in report.notes)


def test_vqa_answers_in_another_layout(vqa):
    write(vqa / "Annotations" / "val.json", [{**vqa_record("val", 1, "x"), "answers": ["x"]}])
    pictures(vqa / "val", name("val", 1))
    (problem,) = check_data(f"vizwiz-vqa:{vqa}", VQA, split="val").problems
    assert "'answers' is no list of objects" in str(problem)


def caption_file(images, captions, **flags):
    annotations = [
        {"id": number, "image_id": image, "caption": text, "is_precanned": text == PRECANNED, "is_rejected": False}
        for number, (image, text) in enumerate(captions)
    ]
    return {"images": [{"id": key, "file_name": file} for key, file in images], "annotations": annotations} | flags


def test_captions_ignore_what_the_official_scoring_ignores(tmp_path):
    """Ids are global: they are not the numbers of the files."""
    records = golden("vizwiz_captions.json")
    images = [(23431 + place, record["file_name"]) for place, record in enumerate(records)]
    content = caption_file(
        images,
        [(key, record["caption"] or PRECANNED) for (key, _), record in zip(images, records, strict=True)]
        + [(23431, PRECANNED), (23432, "spam")],
    )
    content["annotations"][-1]["is_rejected"] = True
    write(tmp_path / "annotations" / "val.json", content)
    pictures(tmp_path / "val", *(record["file_name"] for record in records))
    data = load_data(f"vizwiz-caption:{tmp_path}", CAPTION, split="val")
    assert data.dataset["id"][:] == ["23431", "23432", "23433"]
    assert data.dataset["captions"][:] == [[record["caption"]] for record in records[:3]]
    assert (data.report.rows, data.report.dropped) == (4, 1)
    notes = "\n".join(data.report.notes)
    assert "2 pre-canned captions passed over" in notes
    assert "1 rejected captions passed over" in notes
    assert "1 rows: image left without a reference" in notes


def test_caption_test_pictures_are_all_there(tmp_path):
    write(tmp_path / "annotations" / "test.json", {"images": [{"id": 31181, "file_name": name("test", 0)}]})
    pictures(tmp_path / "test", name("test", 0))
    with pytest.raises(UserError, match="VizWiz-Captions test are not public"):
        load_data(f"vizwiz-caption:{tmp_path}", CAPTION, split="test")
    assert check_data(f"vizwiz-caption:{tmp_path}", CAPTION).good == 1
