from __future__ import annotations

import pytest
from benchmark_layouts import CAPTION, Unanswered, coco_pictures, golden, karpathy_file, pictures, write

from padapter.data import check_data, load_data
from padapter.errors import UserError


def rows(spec, split):
    data = load_data(spec, CAPTION, split=split).dataset
    return dict(zip(data["id"], data["captions"], strict=True))


@pytest.mark.parametrize(
    ("year", "name"), [("2014", "COCO_train2014_{:012d}.jpg"), ("2017", "{:012d}.jpg")], ids=["2014", "2017"]
)
def test_real_records_one_row_per_picture(tmp_path, year, name):
    content = golden("coco_captions.json")
    for image in content["images"]:
        image["file_name"] = name.format(image["id"])
    write(tmp_path / "annotations" / f"captions_train{year}.json", content)
    pictures(tmp_path / f"train{year}", *(image["file_name"] for image in content["images"]))
    found = rows(f"coco:{tmp_path}", "train" if year == "2014" else "train2017")
    assert list(found) == [str(image["id"]) for image in content["images"]]
    assert list(found) == ["790", "84284", "174632"]  # no leading zeros
    for key, captions in found.items():
        theirs = [entry["caption"] for entry in content["annotations"] if entry["image_id"] == int(key)]
        assert captions == [text.strip() for text in theirs]
        assert len(captions) == 5


@pytest.fixture
def root(tmp_path):
    coco_pictures(tmp_path)
    karpathy_file(tmp_path)
    return tmp_path


def test_karpathy_training_is_train_and_restval(root):
    assert rows(f"coco:{root}", "karpathy-train") == {
        "1": ["a picture of train", "train again"],
        "2": ["a picture of restval", "restval again"],
    }
    assert list(rows(f"coco:{root}", "karpathy-val")) == ["3"]
    assert list(rows(f"coco:{root}", "karpathy-test")) == ["4"]


def test_the_names_of_2017_serve_the_files_of_2014(root):
    for folder in ("train2014", "val2014"):
        for path in list((root / folder).iterdir()):
            path.rename(path.with_name(path.name.split("_")[-1]))
    data = load_data(f"coco:{root}", CAPTION, split="karpathy-train").dataset
    assert data[1]["image"]["path"] == f"{root}/val2014/000000000002.jpg"


def test_test_pictures_have_no_captions(root):
    write(root / "image_info_test2014.json", {"images": [{"id": 7, "file_name": "COCO_test2014_000000000007.jpg"}]})
    pictures(root / "test2014", "COCO_test2014_000000000007.jpg")
    with pytest.raises(UserError, match="the answers of COCO Captions test are not public"):
        rows(f"coco:{root}", "test")
    asked = load_data(f"coco:{root}", Unanswered("caption", ()), split="test").dataset
    assert (asked["id"][:], asked.column_names) == (["7"], ["id", "image"])
    report = check_data(f"coco:{root}", CAPTION, split="test")
    assert (report.ok, report.good) == (True, 1)


def test_captions_of_pictures_that_are_not_listed_and_pictures_without(root):
    content = {
        "images": [{"id": 3, "file_name": "COCO_val2014_000000000003.jpg"}, {"id": 4, "file_name": "x.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 3, "caption": "One."},
            {"id": 2, "image_id": 9, "caption": "Lost."},
            {"id": 3, "image_id": 3, "caption": " Two\n"},
            {"id": 4, "image_id": None, "caption": "Nobody's."},
        ],
    }
    write(root / "captions_val2014.json", content)
    told = "\n".join(map(str, check_data(f"coco:{root}", CAPTION, split="val").problems))
    assert "1 captions are of image 9, which is not listed" in told
    assert "record 4: a record of 'annotations' has no whole number as image id" in told
    assert "record 2: captions: is missing or empty" in told
    assert "val2014/x.jpg: image not found" in told
    data = load_data(f"coco:{root}", CAPTION, split="val", skip_bad_rows=True).dataset
    assert data["captions"][:] == [["One.", "Two"]]


def test_blip_style_is_grouped_by_picture(tmp_path):
    coco_pictures(tmp_path)
    train = [
        {"image": "val2014/COCO_val2014_000000000002.jpg", "caption": "one", "image_id": "coco_2"},
        {"image": "train2014/COCO_train2014_000000000001.jpg", "caption": "two", "image_id": "coco_1"},
        {"image": "val2014/COCO_val2014_000000000002.jpg", "caption": "three", "image_id": "coco_2"},
    ]
    write(tmp_path / "coco_karpathy_train.json", train)
    write(
        tmp_path / "coco_karpathy_test.json",
        [{"image": "val2014/COCO_val2014_000000000004.jpg", "caption": ["four", "five"]}, {"image": "gpj.jpg"}],
    )
    assert rows(f"coco:{tmp_path}", "karpathy-train") == {"2": ["one", "three"], "1": ["two"]}
    report = check_data(f"coco:{tmp_path}", CAPTION, split="karpathy-test")
    assert ["'gpj.jpg', not the name of a picture of COCO" in str(problem) for problem in report.problems] == [True]
    assert report.good == 1
