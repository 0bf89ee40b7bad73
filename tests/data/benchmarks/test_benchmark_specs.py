"""What all benchmarks have in common: specs, missing files, missing pictures, overlaps."""

from __future__ import annotations

import pytest
from benchmark_layouts import (
    CAPTION,
    VQA,
    annotation,
    coco_pictures,
    karpathy_file,
    pictures,
    question,
    vqa_part,
    write,
)

from padapter.data import check_data, infer_task, load_data
from padapter.data.benchmarks import BENCHMARKS
from padapter.data.benchmarks.scheme import overlap
from padapter.data.sources import available_splits, names_its_split
from padapter.errors import UserError
from padapter.tasks import TASKS


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_empty_folder_says_what_is_missing_and_where_it_is_found(tmp_path, name):
    benchmark = BENCHMARKS[name]
    assert benchmark.task in TASKS
    assert {split for word in ("train", "validation", "test") for split in [benchmark.split(word).name]}
    with pytest.raises(UserError, match="is not complete") as refusal:
        load_data(f"{name}:{tmp_path}", TASKS[benchmark.task], split="train")
    first = benchmark.split("train").forms[0]
    for needed in first.files.values():
        assert needed.name in str(refusal.value)
        assert f" ({needed.page})" in str(refusal.value)
    assert all(
        "https://" in needed.page for split in benchmark.splits for f in split.forms for needed in f.files.values()
    )
    assert available_splits(f"{name}:{tmp_path}") is None
    with pytest.raises(UserError, match="no split can be read") as refusal:
        check_data(f"{name}:{tmp_path}", TASKS[benchmark.task])
    assert all(
        needed.name in str(refusal.value) for s in benchmark.splits for n in s.forms for needed in n.files.values()
    )


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("", "name the folder"),
        (":nowhere", "no such folder"),
        (":file", "is a file"),
        (":.:other", "there is no split"),
    ],
)
def test_specs_that_cannot_be(tmp_path, monkeypatch, tail, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=message):
        load_data(f"vqav2{tail}", VQA)


def test_a_folder_of_that_name_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco").mkdir()
    with pytest.raises(UserError, match=r"coco: has no split 'train' \(looked for train.jsonl"):
        load_data("coco", CAPTION)


def test_another_task_is_refused(tmp_path):
    with pytest.raises(UserError, match="is for the task 'vqa', not 'caption'"):
        load_data(f"vqav2:{tmp_path}", CAPTION)


@pytest.fixture
def coco(tmp_path):
    coco_pictures(tmp_path)
    karpathy_file(tmp_path)
    return tmp_path


def test_check_names_complete_splits_absent_ones_and_the_task(coco):
    spec = f"coco:{coco}"
    assert infer_task(spec, TASKS.values()).name == "caption"
    assert available_splits(spec) == ["karpathy-train", "karpathy-val", "karpathy-test"]
    report = check_data(spec, CAPTION)
    assert report.ok
    assert report.splits == {"karpathy-train": 2, "karpathy-val": 1, "karpathy-test": 1}
    notes = "\n".join(report.notes)
    assert "val: not here; missing captions_val2014.json (https://cocodataset.org/#download)" in notes
    assert "karpathy-train: read from official files: dataset_coco.json" in notes
    assert "karpathy-train: the published split has 113,287 rows, this has 2" in notes


def test_a_spec_with_a_split_is_that_split(coco):
    assert names_its_split(f"coco:{coco}:karpathy-val")
    assert not names_its_split(f"coco:{coco}")
    assert available_splits(f"coco:{coco}:karpathy-val") is None
    assert load_data(f"coco:{coco}:karpathy-val", CAPTION, split="test").dataset["id"][:] == ["3"]
    assert check_data(f"coco:{coco}:karpathy-val", CAPTION).rows == 1


def test_a_folder_may_have_a_colon_in_its_name(coco):
    renamed = coco.rename(coco.with_name("a:b"))
    assert load_data(f"coco:{renamed}", CAPTION, split="karpathy-val").dataset["id"][:] == ["3"]
    assert load_data(f"coco:{renamed}:karpathy-val", CAPTION).dataset["id"][:] == ["3"]


def test_all_missing_pictures_at_once(coco):
    (coco / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    (coco / "train2014" / "COCO_train2014_000000000001.jpg").unlink()
    report = check_data(f"coco:{coco}", CAPTION, split="karpathy-train")
    assert [problem.message for problem in report.problems] == [
        f"{coco}/train2014/COCO_train2014_000000000001.jpg: image not found.",
        f"{coco}/val2014/COCO_val2014_000000000002.jpg: image not found.",
    ]
    assert str(report.problems[1]).startswith(f"{coco}/dataset_coco.json, record 2: image:")


def test_no_picture_at_all_names_the_page(coco):
    for folder in ("train2014", "val2014"):
        for path in (coco / folder).iterdir():
            path.unlink()
    with pytest.raises(UserError, match="no picture of the split 'karpathy-val'") as refusal:
        load_data(f"coco:{coco}", CAPTION, split="karpathy-val")
    assert "train2014/" in str(refusal.value)
    assert "https://cocodataset.org/#download" in str(refusal.value)


def test_a_check_of_all_splits_goes_on_where_one_has_no_pictures(coco):
    write(coco / "image_info_test2014.json", {"images": [{"id": 9, "file_name": "COCO_test2014_000000000009.jpg"}]})
    (coco / "dataset_coco.json").unlink()
    write(coco / "captions_train2014.json", {"images": [], "annotations": []})
    report = check_data(f"coco:{coco}", CAPTION)
    told = [(problem.field, problem.message) for problem in report.problems]
    assert [field for field, _ in told if field] == ["test"]
    assert any("no picture of the split 'test' is there" in message for _, message in told)
    assert any("has no rows" in message for _, message in told)


def test_files_in_a_folder_of_their_own(coco):
    (coco / "annotations").mkdir()
    (coco / "dataset_coco.json").rename(coco / "annotations" / "dataset_coco.json")
    assert load_data(f"coco:{coco}", CAPTION, split="karpathy-val").dataset["id"][:] == ["3"]
    karpathy_file(coco / "other")
    with pytest.raises(UserError, match=r"has several dataset_coco\.json"):
        load_data(f"coco:{coco}", CAPTION, split="karpathy-val")


def test_files_that_break_off_or_are_something_else(coco):
    path = coco / "dataset_coco.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UserError, match=r"dataset_coco.json: is not JSON at character \d+"):
        load_data(f"coco:{coco}", CAPTION, split="karpathy-val")
    write(path, {"annotations": []})
    with pytest.raises(UserError, match="lacks a list 'images'; it has: annotations"):
        load_data(f"coco:{coco}", CAPTION, split="karpathy-val")
    write(path, [1])
    with pytest.raises(UserError, match="expected one JSON object"):
        load_data(f"coco:{coco}", CAPTION, split="karpathy-val")
    path.write_bytes(b'{"images": [{"cocoid": 1, "split": "\xff"}]}')
    with pytest.raises(UserError, match="is not UTF-8"):
        load_data(f"coco:{coco}", CAPTION, split="karpathy-val")


@pytest.mark.parametrize(
    ("train", "scored", "wrong"),
    [
        ("train", "karpathy-test", False),
        ("karpathy-train", "karpathy-test", False),
        ("karpathy-train", "karpathy-val", False),
        ("train", "val", False),
        ("val", "karpathy-test", True),
        ("validation", "karpathy-test", True),
        ("karpathy-train", "val", True),
        ("train2017", "karpathy-test", True),
        ("karpathy-test", "karpathy-test", True),
    ],
)
def test_training_on_what_is_scored_is_told(train, scored, wrong):
    found = overlap(("coco", train), ("coco", scored))
    assert (found is not None) is wrong
    if wrong and train == "val":
        assert found == (
            "karpathy-test of COCO Captions shares pictures with val, the split that was trained on: "
            "scores on it say nothing about new pictures"
        )
    assert overlap(("coco", train), ("vqav2", scored)) is None
    assert overlap(("coco", train), ("coco", "another")) is None
    assert overlap(("mine", scored), ("mine", scored)) is None


def test_splits_of_coco_share_what_they_share():
    """All ordered pairs, against pictures divided as the releases divide them."""
    train2014, val2014 = set(range(10)), set(range(10, 22))
    karpathy = {"karpathy-val": {10, 11, 12}, "karpathy-test": {13, 14, 15}}
    val2017 = {12, 15, 21}  # some of val2014, from each of its Karpathy parts
    pictures = {
        "train": train2014,
        "val": val2014,
        "test": set(range(100, 105)),
        "train2017": (train2014 | val2014) - val2017,
        "val2017": val2017,
        "karpathy-train": (train2014 | val2014) - karpathy["karpathy-val"] - karpathy["karpathy-test"],
        **karpathy,
    }
    assert {split.name for split in BENCHMARKS["coco"].splits} == pictures.keys()
    told = {(a, b): overlap(("coco", a), ("coco", b)) is not None for a in pictures for b in pictures}
    assert told == {(a, b): bool(pictures[a] & pictures[b]) for a in pictures for b in pictures}


def test_big_files_are_walked_in_small_steps(tmp_path, monkeypatch):
    """Every place where a chunk may end, numbers and escapes included."""
    from padapter.data import records

    coco_pictures(tmp_path)
    vqa_part(
        tmp_path,
        "train2014",
        [question(1, n, f'Wh\\at "{n}" é?') for n in range(3)],
        [annotation(1, n, "x") for n in range(3)],
    )
    spec = f"vqav2:{tmp_path}"
    expected = load_data(spec, VQA).fingerprint
    for chunk in (1, 2, 7, 64):
        monkeypatch.setattr(records, "_CHUNK", chunk)
        assert load_data(spec, VQA).fingerprint == expected


def test_many_missing_pictures_are_one_problem(tmp_path):
    root = tmp_path / "vqa"
    keys = range(1, 11)
    vqa_part(root, "val2014", [question(key, n) for key in keys for n in (0, 1)],
             [annotation(key, n, "no") for key in keys for n in (0, 1)])  # fmt: skip
    pictures(root / "val2014", "COCO_val2014_000000000001.jpg", "COCO_val2014_000000000002.jpg")
    (root / "val2014" / "COCO_val2014_000000000002.jpg").write_bytes(b"")
    empty, missing = sorted(check_data(f"vqav2:{root}", VQA).problems, key=lambda problem: -(problem.line or 0))
    assert missing.message.startswith("8 of 10 pictures are missing, which 16 rows name: val2014/COCO_val2014_00")
    assert missing.message.endswith("Officially found at https://cocodataset.org/#download")
    assert "is empty (0 bytes)" in empty.message
    loaded = load_data(f"vqav2:{root}", VQA, split="val", skip_bad_rows=True)
    assert loaded.dataset["id"][:] == ["1000", "1001"]


def test_files_of_one_page_are_named_together(tmp_path):
    with pytest.raises(UserError) as refusal:
        check_data(f"vqav2:{tmp_path}", VQA)
    lines = str(refusal.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [split.name for split in BENCHMARKS["vqav2"].splits]
    assert all(line.count("https://visualqa.org/download.html") <= 1 for line in lines)
