from __future__ import annotations

import json

import pytest
from benchmark_layouts import (
    VQA,
    Unanswered,
    annotation,
    coco_pictures,
    golden,
    karpathy_file,
    pictures,
    question,
    vqa_part,
    write,
)

from padapter.data import check_data, load_data
from padapter.data.schema import asked_fields
from padapter.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Two questions on image 1 of train2014, one on each of 2, 3, 4 of val2014; test2015 without answers."""
    coco_pictures(tmp_path)
    karpathy_file(tmp_path)
    vqa_part(
        tmp_path, "train2014", [question(1, 0), question(1, 1)], [annotation(1, 1, "red"), annotation(1, 0, "a", "b")]
    )
    vqa_part(tmp_path, "val2014", [question(key, 0) for key in (2, 3, 4)], [annotation(k, 0, "no") for k in (2, 3, 4)])
    vqa_part(tmp_path, "test2015", [question(9, 0), question(9, 1)])
    vqa_part(tmp_path, "test-dev2015", [question(9, 1)])
    pictures(tmp_path / "test2015", "COCO_test2015_000000000009.jpg")
    return tmp_path


def ids(root, split, **options):
    return load_data(f"vqav2:{root}", VQA, split=split, **options).dataset["id"][:]


def test_real_records(tmp_path):
    questions, annotations = golden("vqa_v2_questions.json"), golden("vqa_v2_annotations.json")
    write(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", questions)
    write(tmp_path / "v2_mscoco_train2014_annotations.json", annotations)
    pictures(tmp_path / "train2014", *(f"COCO_train2014_{q['image_id']:012d}.jpg" for q in questions["questions"]))
    data = load_data(f"vqav2:{tmp_path}", VQA, split="train")
    assert data.dataset["id"][:] == [str(q["question_id"]) for q in questions["questions"]]
    assert data.dataset["question"][:] == [q["question"] for q in questions["questions"]]
    by_id = {a["question_id"]: a for a in annotations["annotations"]}
    for row in data.dataset:
        assert row["answers"] == [entry["answer"] for entry in by_id[int(row["id"])]["answers"]]
        assert row["answer_type"] == by_id[int(row["id"])]["answer_type"]
        assert row["question_type"] == by_id[int(row["id"])]["question_type"]
        assert len(row["answers"]) == 10
    assert (data.name, data.split, data.rule) == ("vqav2", "train", None)


def test_annotations_are_joined_by_id_not_by_order(root):
    data = load_data(f"vqav2:{root}", VQA, split="train").dataset
    assert data["id"][:] == ["1000", "1001"]
    assert data["answers"][:] == [["a"] + ["b"] * 9, ["red"] * 10]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", ["1000", "1001"]),
        ("train2014", ["1000", "1001"]),
        ("val", ["2000", "3000", "4000"]),
        ("validation", ["2000", "3000", "4000"]),
        ("karpathy-train", ["1000", "1001", "2000"]),
        ("karpathy-val", ["3000"]),
        ("karpathy-test", ["4000"]),
    ],
)
def test_splits_by_name(root, split, expected):
    assert ids(root, split) == expected
    assert load_data(f"vqav2:{root}:{split}", VQA, split="train").dataset["id"][:] == expected


@pytest.mark.parametrize("layout", ["2017", "flat", "images", "both"])
def test_pictures_by_either_name_in_either_place(root, layout):
    place = {"2017": "train2017", "flat": "", "images": "images/val2014", "both": "train2017"}[layout]
    for folder in ("train2014", "val2014"):
        for path in list((root / folder).iterdir()):
            target = root / place / path.name.split("_")[-1]
            target.parent.mkdir(parents=True, exist_ok=True)
            if layout == "both":
                target.write_bytes(path.read_bytes())
            else:
                path.rename(target)
    data = load_data(f"vqav2:{root}", VQA, split="karpathy-train").dataset
    place = {"both": "train2014/COCO_train2014_"}.get(layout, f"{place}/" if place else "")
    assert data[0]["image"]["path"] == f"{root}/{place}{1:012d}.jpg"
    assert len(data) == 3


@pytest.mark.parametrize(
    ("split", "expected"), [("test", ["9000", "9001"]), ("testdev", ["9001"]), ("test-dev", ["9001"])]
)
def test_test_splits_are_read_without_answers_and_refused_with(root, split, expected):
    asked = load_data(f"vqav2:{root}", Unanswered("vqa", asked_fields(VQA.fields)), split=split).dataset
    assert asked["id"][:] == expected
    assert "answers" not in asked.column_names
    with pytest.raises(UserError, match="are not public") as refusal:
        load_data(f"vqav2:{root}", VQA, split=split)
    assert "padapter predict" in str(refusal.value)
    assert "karpathy-test" in str(refusal.value)
    assert "visualqa.org" in str(refusal.value)


def test_mismatches_are_all_reported_at_once(root):
    vqa_part(
        root,
        "val2014",
        [question(2, 0), question(3, 0), question(4, 0), {"question": "Which?"}],
        [annotation(2, 0, "no"), annotation(3, 7, "no"), {**annotation(4, 0, "no"), "image_id": 2}],
    )
    report = check_data(f"vqav2:{root}", VQA, split="val")
    told = [str(problem) for problem in report.problems]
    assert any("record 2" in line and "question 3000 has no annotation" in line for line in told)
    assert any("annotation of question 3007 has no question" in line for line in told)
    assert any("question 4000 is about image 4, its annotation about image 2" in line for line in told)
    assert any("record 4" in line and "must be whole numbers" in line for line in told)
    assert ids(root, "val", skip_bad_rows=True) == ["2000"]


def test_files_that_do_not_belong_together(root):
    vqa_part(root, "val2014", [question(2, 0)], [annotation(3, 0, "no")])
    with pytest.raises(UserError, match="no question in common"):
        ids(root, "val")


def test_ids_as_text_are_the_same_ids(root):
    vqa_part(
        root, "val2014", [{**question(2, 0), "question_id": "2000"}], [{**annotation(2, 0, "no"), "image_id": "2"}]
    )
    assert ids(root, "val") == ["2000"]


def test_a_picture_without_questions_is_noted(root):
    vqa_part(root, "val2014", [question(3, 0)], [annotation(3, 0, "no")])
    assert "1 of 1 pictures of karpathy-test have no question" in str(
        check_data(f"vqav2:{root}", VQA, split="karpathy-test").format()
    )


@pytest.fixture
def blip(tmp_path):
    coco_pictures(tmp_path)
    rows = [
        {"dataset": "vqa", "image": "val2014/COCO_val2014_000000000002.jpg", "question": "What?", "question_id": 2000,
         "answer": ["red", "red", "blue"]},
        {"dataset": "vg", "image": "VG_100K/000000000002.jpg", "question": "Who?", "question_id": 2000,
         "answer": "a man"},
    ]  # fmt: skip
    write(tmp_path / "vqa_karpathy_train.json", rows)
    pictures(tmp_path / "vg" / "VG_100K", "000000000002.jpg")
    return tmp_path


def test_blip_style(blip):
    data = load_data(f"vqav2:{blip}", VQA, split="karpathy-train").dataset
    assert data["id"][:] == ["2000", "vg-2000"]
    assert data["answers"][:] == [["red", "red", "blue"], ["a man"]]
    assert data["weight"][:] == [None, 0.2]
    assert [sum(weight for _, weight in VQA.targets(row)) for row in data] == pytest.approx([1, 0.2])
    assert [row["image"]["path"] for row in data] == [
        f"{blip}/val2014/COCO_val2014_000000000002.jpg",
        f"{blip}/vg/VG_100K/000000000002.jpg",
    ]


def test_a_blip_style_record_may_say_its_own_weight(blip):
    rows = json.loads((blip / "vqa_karpathy_train.json").read_text())
    write(blip / "vqa_karpathy_train.json", [rows[0], rows[1] | {"weight": 0.5}])
    data = load_data(f"vqav2:{blip}", VQA, split="karpathy-train").dataset
    assert data["weight"][:] == [None, 0.5]


def test_official_files_come_before_blip_style(root):
    write(root / "vqa_karpathy_test.json", [])
    assert ids(root, "karpathy-test") == ["4000"]
