"""Where data come from: folders, metadata files, datasets directories, the hub, built-in worlds."""

from __future__ import annotations

import sys
import types

import datasets
import pytest
from data_cases import CAPTION, ENTAILMENT, VQA, picture, problems, vqa_file, vqa_row, write_jsonl
from PIL import Image

from padapter.data import check_data, load_data, open_image
from padapter.errors import UserError


def test_a_folder_of_splits(tmp_path):
    vqa_file(tmp_path)
    vqa_file(tmp_path, vqa_row(id="v", image="b.png"), name="val.json")
    write_jsonl(tmp_path / "test.jsonl", [vqa_row(id="t")])
    assert [load_data(str(tmp_path), VQA, split=s).dataset["id"][:] for s in ("train", "validation", "test")] == [
        ["1"],
        ["v"],
        ["t"],
    ]
    report = check_data(str(tmp_path), VQA)
    assert (report.rows, report.splits) == (3, {"train": 1, "validation": 1, "test": 1})
    assert report.notes == ["1 images occur in both train and test"]
    assert check_data(str(tmp_path), VQA, split="validation").rows == 1


def test_folder_faults(tmp_path):
    with pytest.raises(UserError, match=r"has no split 'train' \(looked for train\.jsonl, training\.jsonl"):
        load_data(str(tmp_path), VQA)
    vqa_file(tmp_path)
    with pytest.raises(UserError, match=r"has no split 'test'.*It has: train\.jsonl"):
        load_data(str(tmp_path), VQA, split="test")
    write_jsonl(tmp_path / "train.json", [vqa_row()])
    with pytest.raises(UserError, match=r"several files could be the split 'train': train\.jsonl, train\.json"):
        load_data(str(tmp_path), VQA)


def test_image_folder_metadata(tmp_path):
    picture(tmp_path / "one" / "a.png")
    row = {"file_name": "a.png", "caption": "A thing."}
    write_jsonl(tmp_path / "one" / "metadata.jsonl", [row])
    assert len(load_data(str(tmp_path / "one"), CAPTION).dataset) == 1
    picture(tmp_path / "two" / "train" / "a.png")
    (tmp_path / "two" / "train" / "metadata.csv").write_text("file_name,caption\na.png,A thing.\n")
    loaded = load_data(str(tmp_path / "two"), CAPTION)
    assert loaded.dataset[0]["captions"] == ["A thing."]
    assert loaded.name == "two/train"


@pytest.mark.parametrize("spec", ["missing.jsonl", "./missing", "/nowhere/at/all", "~/no such folder", "missing", " "])
def test_specs_that_name_nothing(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"Data are a \.jsonl"):
        load_data(spec, VQA)


def test_a_close_name_is_suggested(tmp_path):
    with pytest.raises(UserError, match=r"Did you mean train\.jsonl\?"):
        load_data(str(vqa_file(tmp_path)).replace("train", "trian"), VQA)


def saved_table(folder, rows=4):
    images = [Image.new("RGB", (8, 8), (40 * n, 0, 0)) for n in range(rows)]
    columns = {
        "image": images,
        "question": [f"What is {n}?" if n != 1 else "" for n in range(rows)],
        "answer": [str(n) for n in range(rows)],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    )
    return datasets.Dataset.from_dict(columns, features=features)


def test_a_datasets_directory(tmp_path):
    table = saved_table(tmp_path)
    datasets.DatasetDict({"train": table, "dev": table.select([0])}).save_to_disk(tmp_path / "saved")
    before = sorted(path for path in (tmp_path / "saved").rglob("*"))
    with pytest.raises(UserError, match="saved, line 2: question: is missing or empty"):
        load_data(str(tmp_path / "saved"), VQA)
    loaded = load_data(str(tmp_path / "saved"), VQA, skip_bad_rows=True)
    assert loaded.dataset["answers"][:] == [["0"], ["2"], ["3"]]
    assert [open_image(row["image"]).getpixel((0, 0))[0] for row in loaded.dataset] == [0, 80, 120]
    assert len(load_data(str(tmp_path / "saved"), VQA, split="validation").dataset) == 1
    assert check_data(str(tmp_path / "saved"), VQA).splits == {"train": 4, "validation": 1}
    with pytest.raises(UserError, match="has no split 'test'; it has: train, dev"):
        load_data(str(tmp_path / "saved"), VQA, split="test")
    assert sorted(path for path in (tmp_path / "saved").rglob("*")) == before


def test_a_datasets_directory_with_paths_and_one_that_is_broken(tmp_path):
    table = datasets.Dataset.from_dict({"image": ["a.png"], "question": ["What?"], "answer": ["x"]})
    table.save_to_disk(tmp_path / "saved")
    picture(tmp_path / "saved" / "a.png")
    assert open_image(load_data(str(tmp_path / "saved"), VQA).dataset[0]["image"]).size == (8, 8)
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(UserError, match="not a readable datasets directory"):
        load_data(str(tmp_path / "saved"), VQA)


def test_a_table_with_a_null_image(tmp_path):
    table = saved_table(tmp_path, rows=1)
    nothing = datasets.Dataset.from_dict(
        {"image": [None], "question": ["Why?"], "answer": ["x"]}, features=table.features
    )
    datasets.concatenate_datasets([table, nothing]).save_to_disk(tmp_path / "saved")
    assert problems(check_data(str(tmp_path / "saved"), VQA)) == [(2, "image", "is missing or empty")]


def test_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda spec: ["train", "val"])
    asked = []

    def fake(spec, split):
        asked.append((spec, split))
        return saved_table(tmp_path, rows=1)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    loaded = load_data("owner/name", VQA, split="validation")
    assert (loaded.name, asked) == ("owner/name", [("owner/name", "val")])
    with pytest.raises(UserError, match="owner/name: has no split 'test'; it has: train, val"):
        load_data("owner/name", VQA, split="test")


def test_an_unreachable_hub_is_one_clear_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def offline(spec):
        raise ConnectionError("Couldn't reach 'owner/name'\nmore\nlines")

    monkeypatch.setattr(datasets, "get_dataset_split_names", offline)
    with pytest.raises(UserError, match=r"could not be had from the hub \(Couldn't reach 'owner/name'\)") as error:
        load_data("owner/name", VQA)
    assert "offline, give a file or a folder" in str(error.value)


@pytest.fixture
def world(monkeypatch, tmp_path):
    """A stand-in for the built-in worlds that records how it was called."""
    calls = []

    def load_world(domain, task, split, size, seed):
        calls.append((domain, task, split, size, seed))
        return saved_table(tmp_path, rows=1)

    monkeypatch.setitem(sys.modules, "padapter.worlds", types.SimpleNamespace(load_world=load_world))
    return calls


@pytest.mark.parametrize(
    ("spec", "call"),
    [
        ("shapes:source", ("source", "vqa", "validation", None, 3)),
        ("shapes:source:test", ("source", "vqa", "test", None, 3)),
        ("shapes:new-pictures:train:50", ("new-pictures", "vqa", "train", 50, 3)),
    ],
)
def test_world_specs(world, spec, call):
    loaded = load_data(spec, VQA, split="validation", seed=3)
    assert world == [call]
    assert (loaded.name, loaded.split) == (f"shapes:{call[0]}", call[2])


@pytest.mark.parametrize(
    "spec", ["shapes", "shapes:", "shapes:a:b:c:d", "shapes:a:b:0", "shapes:a:b:many", "shapes:a::5"]
)
def test_world_specs_that_are_none(world, spec):
    with pytest.raises(UserError, match=r"shapes:DOMAIN|whole number above 0"):
        load_data(spec, VQA)
    assert world == []


@pytest.mark.parametrize("task", [VQA, ENTAILMENT, CAPTION], ids=lambda task: task.name)
def test_the_real_world_fits_every_task(task):
    loaded = load_data("shapes:new-questions:test:6", task)
    assert len(loaded.dataset) == 6
    assert loaded.report.ok
    assert {spec.name for spec in task.fields if spec.required} < set(loaded.dataset.column_names)
    row = loaded.dataset[5]
    assert task.prompt(row)
    assert task.targets(row)
    assert open_image(row["image"]).mode == "RGB"
    assert load_data("shapes:new-questions:test:6", task).fingerprint == loaded.fingerprint
    assert load_data("shapes:new-questions:test:6", task, seed=1).fingerprint != loaded.fingerprint
