"""Shards give the same rows, ids, pictures and fingerprint as what they were packed from."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile

import datasets
import pytest
from data_cases import CAPTION, ENTAILMENT, VQA, picture, vqa_row, write_jsonl
from PIL import Image

from padapter.data import Picture, check_data, infer_task, load_data, open_image
from padapter.data.columns import ColumnRows
from padapter.data.shards.index import read_index
from padapter.data.shards.write import write_shards
from padapter.data.sources import available_splits, names_its_split, open_source
from padapter.errors import UserError
from padapter.tasks import TASKS


@pytest.fixture
def folder(tmp_path):
    """Six pictures of about 100 kB of noise each; the first has two rows that do not follow each other."""
    root = tmp_path / "folder"
    (root / "images").mkdir(parents=True)
    for number in range(6):
        noise = Image.effect_noise((320, 320), 90)
        noise.save(root / "images" / f"{number}.JPG", quality=95)
    rows = [
        vqa_row(id=f"q{place}", image=f"images/{number}.JPG", question=f"Is “{place}”\u2028there?", answers=["yes", ""])
        for place, number in enumerate([0, 1, 2, 3, 4, 5, 0])
    ]
    rows[2]["question_type"] = "is"
    write_jsonl(root / "train.jsonl", rows)
    write_jsonl(root / "validation.jsonl", rows[:2])
    return root


def same(one, other):
    assert one.fingerprint == other.fingerprint
    assert one.dataset.column_names == other.dataset.column_names
    for column in set(one.dataset.column_names) - {"image"}:
        assert one.dataset[column][:] == other.dataset[column][:]
    for mine, theirs in zip(one.dataset["image"], other.dataset["image"], strict=True):
        assert Picture(mine).digest == Picture(theirs).digest
        assert open_image(mine).tobytes() == open_image(theirs).tobytes()


def members(tar):
    with tarfile.open(tar) as opened:
        return [member.name for member in opened]


def test_a_folder_of_shards_is_the_folder(folder, tmp_path):
    shards = tmp_path / "shards"
    written = write_shards(str(folder), shards, VQA, megabytes=1)
    assert [one.header.split for one in written] == ["train", "validation"]
    assert available_splits(str(shards)) == ["train", "validation"]
    assert infer_task(str(shards), TASKS.values()).name == "vqa"
    for split in ("train", "validation"):
        packed, plain = load_data(str(shards), VQA, split=split), load_data(str(folder), VQA, split=split)
        same(packed, plain)
    assert written[0].header.fingerprint == load_data(str(folder), VQA).fingerprint
    assert check_data(str(shards), VQA).ok
    assert sorted(path.name for path in shards.iterdir()) == [
        "train-000000.tar", "train.shards.jsonl", "validation-000000.tar", "validation.shards.jsonl",
    ]  # fmt: skip


def test_the_layout_is_that_of_webdataset(folder, tmp_path):
    """Pictures are packed once, and `datasets` reads the files by its own loader."""
    write_shards(str(folder), tmp_path / "s", VQA, split="train", megabytes=1)
    tar = tmp_path / "s" / "train-000000.tar"
    assert members(tar) == [f"{number:09d}.{end}" for number in range(6) for end in ("jpg", "json")]
    rows = list(datasets.load_dataset("webdataset", data_files=str(tar), split="train", streaming=True))
    assert [row["json"]["image"] for row in rows] == [f"images/{number}.JPG" for number in range(6)]
    assert [row["id"] for row in rows[0]["json"]["rows"]] == ["q0", "q6"]


def noise(path, megabytes):
    """A picture of at least so many megabytes."""
    side = int((megabytes * 1_000_000) ** 0.5) + 2
    Image.effect_noise((side, side), 200).save(path, compress_level=0)


def test_shards_end_at_the_size_and_are_read_in_any_order(tmp_path):
    root = tmp_path / "folder"
    root.mkdir()
    for number in range(4):
        noise(root / f"{number}.png", 1.2 if number == 1 else 0.4)
    write_jsonl(root / "train.jsonl", [{"image": f"{n}.png", "caption": f"picture {n}"} for n in range(4)])
    (written,) = write_shards(str(root), tmp_path / "s", CAPTION, split="train", megabytes=1)
    assert [shard.images for shard in written.header.shards] == [1, 1, 2]
    data = load_data(str(tmp_path / "s"), CAPTION)
    same(data, load_data(str(root), CAPTION))
    shuffled = data.dataset.shuffle(seed=1)
    for row in shuffled:
        number = row["captions"][0][-1]
        assert open_image(row["image"]).tobytes() == open_image(root / f"{number}.png").tobytes()


@pytest.fixture
def three(tmp_path):
    """Three shards of one picture each, and the folder they come from."""
    root = tmp_path / "folder"
    root.mkdir()
    for number in range(3):
        noise(root / f"{number}.png", 0.7)
    rows = [{"image": f"{n}.png", "hypothesis": f"it is {n}", "label": label} for n, label in enumerate("abc")]
    write_jsonl(root / "train.jsonl", rows)
    write_shards(str(root), tmp_path / "s", ENTAILMENT, split="train", megabytes=1)
    return tmp_path


def test_patterns_with_an_index_on_two_disks(three):
    whole = load_data(str(three / "folder"), ENTAILMENT)
    assert names_its_split("wds:x.tar")
    same(load_data(f"wds:{three}/s/train-{{000000..000002}}.tar", ENTAILMENT), whole)
    (three / "disk2").mkdir()
    (three / "s" / "train-000001.tar").rename(three / "disk2" / "train-000001.tar")
    same(load_data(f"wds:{three}/s/*.tar,{three}/disk2/train-000001.tar", ENTAILMENT), whole)
    part = load_data(f"wds:{three}/s/train-*.tar", ENTAILMENT)
    assert part.dataset["hypothesis"][:] == ["it is 0", "it is 2"]
    assert "2 of 3 shards of the split are read" in part.report.notes


def test_rows_of_a_picture_keep_their_places_without_an_index(folder, tmp_path):
    write_shards(str(folder), tmp_path / "s", VQA, split="train", megabytes=1)
    (tmp_path / "s" / "train.shards.jsonl").unlink()
    same(load_data(f"wds:{tmp_path}/s/train-*.tar", VQA), load_data(str(folder), VQA))


def test_tar_files_without_an_index(three):
    (three / "s" / "train.shards.jsonl").unlink()
    spec = f"wds:{three}/s/train-{{000000..000002}}.tar"
    same(load_data(spec, ENTAILMENT), load_data(str(three / "folder"), ENTAILMENT))
    assert infer_task(spec, TASKS.values()).name == "entailment"


def tar_of(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_tar_files_of_others(tmp_path):
    picture(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    files = {"x/1.png": content, "x/1.txt": b"a red square", "x/2.b.png": content, "x/2.json": b'{"caption": "red"}',
             "lonely.png": content, "only.json": b"{}"}  # fmt: skip
    tar_of(tmp_path / "t.tar", files)
    data = load_data(f"wds:{tmp_path}/t.tar", CAPTION).dataset
    assert (data["id"][:], data["captions"][:]) == (["x/1"], [["a red square"]])


def coloured(colour):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("third", ["own.png", "b.tar/0"])
def test_pictures_of_the_same_name_are_kept_apart(tmp_path, third):
    """Two tar files call their picture the same; the third has a name of its own, or that which tells them apart."""
    colours = {"a": "red", "b": "blue", "c": "lime"}
    for tar, colour in colours.items():
        record = {"image": third if tar == "c" else "0.png", "id": tar, "caption": colour}
        tar_of(tmp_path / f"{tar}.tar", {"0.png": coloured(colour), "0.json": json.dumps(record).encode()})
    data = load_data(f"wds:{tmp_path}/*.tar", CAPTION).dataset
    seen = {row["captions"][0]: open_image(row["image"]).getpixel((0, 0)) for row in data}
    assert seen == {"red": (255, 0, 0), "blue": (0, 0, 255), "lime": (0, 255, 0)}


def test_two_packed_splits_of_the_same_names_are_read_together(tmp_path):
    for name, colour in {"one": "red", "two": "blue"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(coloured(colour))
        write_jsonl(tmp_path / name / f"{name}.jsonl", [{"id": name, "image": "1.png", "caption": colour}])
        write_shards(str(tmp_path / name), tmp_path / f"s-{name}", CAPTION, split=name)
    data = load_data(f"wds:{tmp_path}/s-one/*.tar,{tmp_path}/s-two/*.tar", CAPTION).dataset
    seen = {row["captions"][0]: open_image(row["image"]).getpixel((0, 0)) for row in data}
    assert seen == {"red": (255, 0, 0), "blue": (0, 0, 255)}


def test_rows_of_alternating_files_name_their_files():
    """Rows of two tar files that alternate, as after sorting, and more than 65,536 files."""
    rows = ColumnRows()
    for number in range(66_000):
        rows.add("ab"[number % 2], number, caption="x")
    assert [(rows[place].file, rows[place].line) for place in (0, 65_535, 65_999)] == [
        ("a", 0), ("b", 65_535), ("b", 65_999),
    ]  # fmt: skip
    for number in range(66_000):
        rows.add(f"{number}.tar", number)
    assert (rows[-1].file, rows[0].file) == ("65999.tar", "a")


def test_a_split_is_packed_anew(folder, tmp_path, monkeypatch):
    """Out of the old shards themselves, too; the other split stays."""
    shards = tmp_path / "shards"
    with monkeypatch.context() as small:
        small.setattr("padapter.data.shards.write.MEGABYTE", 250_000)
        write_shards(str(folder), shards, VQA, megabytes=1)
    whole = load_data(str(folder), VQA, split="train")
    other = {path.name: path.read_bytes() for path in shards.glob("validation*")}
    before = sorted(path.name for path in shards.glob("train*"))
    (written,) = write_shards(str(shards), shards, VQA, split="train", overwrite=True)
    assert len(before) > 2  # two shards or more, and the index
    assert sorted(path.name for path in shards.iterdir()) == sorted([*other, "train-000000.tar", written.index.name])
    same(load_data(str(shards), VQA, split="train"), whole)
    assert other == {path.name: path.read_bytes() for path in shards.glob("validation*")}
    (shards / "train-000007.tar").write_bytes(b"of somebody else")
    with pytest.raises(UserError, match=r"has train-000007\.tar already, without the index"):
        write_shards(str(folder), shards, VQA, split="train", overwrite=True)


def test_tar_files_of_others_are_not_written_over(folder, tmp_path):
    shards = tmp_path / "s"
    shards.mkdir()
    (shards / "train-000000.tar").write_bytes(b"of somebody")
    with pytest.raises(UserError, match=r"s: has train-000000\.tar already, without .*train\.shards.*another folder"):
        write_shards(str(folder), shards, VQA, split="train")
    assert (shards / "train-000000.tar").read_bytes() == b"of somebody"
    assert write_shards(str(folder), shards, VQA, split="validation")


def test_pictures_in_tables_keep_their_fingerprint(tmp_path):
    spec = "shapes:source:test:3"
    write_shards(spec, tmp_path, VQA)
    same(load_data(str(tmp_path), VQA, split="test"), load_data(spec, VQA))


def test_bad_rows_are_not_packed(folder, tmp_path):
    lines = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(lines + json.dumps(vqa_row(id="bad", image="gone.png")) + "\n")
    with pytest.raises(UserError, match="1 of 8 rows cannot be used"):
        write_shards(str(folder), tmp_path / "s", VQA, split="train")
    assert not (tmp_path / "s").exists()
    (written,) = write_shards(str(folder), tmp_path / "s", VQA, split="train", skip_bad_rows=True)
    assert (written.header.rows, written.header.left_out) == (7, 1)
    assert "1 rows were left out when the shards were written" in load_data(str(tmp_path / "s"), VQA).report.notes
    with pytest.raises(UserError, match="exists already"):
        write_shards(str(folder), tmp_path / "s", VQA, split="train", skip_bad_rows=True)


def test_damage_is_found_at_the_start(three):
    shards = three / "s"
    tar = shards / "train-000001.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:-1000])
    with pytest.raises(UserError, match=rf"1 of 3 shards are not as they were written: .*has {len(content) - 1000} of"):
        load_data(str(shards), ENTAILMENT)
    tar.unlink()
    with pytest.raises(UserError, match="is missing"):
        load_data(str(shards), ENTAILMENT)
    with pytest.raises(UserError, match=r"no such file: .*train-000001\.tar"):
        load_data(f"wds:{shards}/train-{{000000..000002}}.tar", ENTAILMENT)
    tar.write_bytes(content)
    place = read_index(shards / "train.shards.jsonl").places["1.png"]
    tar.write_bytes(content[: place.offset] + bytes(place.size) + content[place.offset + place.size :])
    problems = check_data(str(shards), ENTAILMENT).problems
    assert ["train-000001.tar#" in problem.message for problem in problems] == [True]


@pytest.mark.parametrize("damage", ["cut", "header", "line", "outside"])
def test_a_damaged_index_is_refused(three, damage):
    path = three / "s" / "train.shards.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    outside = [lines[0].replace("train-000001.tar", "../train-000001.tar"), *lines[1:]]
    damaged = {
        "outside": outside,
        "cut": lines[:-1],
        "header": ['{"format": "other"}\n', *lines[1:]],
        "line": [*lines[:-1], "{\n"],
    }[damage]
    path.write_text("".join(damaged))
    message = {
        "outside": "is no file beside the index",
        "cut": "holds 2 of 3 rows",
        "header": "is not an index",
        "line": "line 7: is damaged",
    }[damage]
    with pytest.raises(UserError, match=message):
        load_data(str(three / "s"), ENTAILMENT)


def test_splits_that_are_not_there(three):
    with pytest.raises(UserError, match="has no shards of a split 'test'; it has: train"):
        open_source(str(three / "s"), "entailment", split="test")


def test_the_command(three):
    command = [
        sys.executable,
        "-m",
        "padapter",
        "data",
        "shard",
        str(three / "folder"),
        str(three / "new"),
        "--size",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "train.shards.jsonl: 3 rows, 3 images, 3 shards" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, "exists already" in again.stderr) == (2, True)


def test_shards_of_several_indexes_keep_the_rule_they_agree_on(tmp_path):
    specs = []
    for name in "xy":
        root = tmp_path / name
        picture(root / f"{name}.png")
        write_jsonl(root / "rows.jsonl", [vqa_row(id=name, image=f"{name}.png")])
        write_shards(str(root / "rows.jsonl"), root / "s", VQA, split=name)
        index = root / "s" / f"{name}.shards.jsonl"
        index.write_text(index.read_text().replace('"rule":null', '"rule":"vizwiz-released"'))
        specs.append(f"{root}/s/{name}-000000.tar")
    both = f"wds:{specs[0]},{specs[1]}"
    data = load_data(both, VQA)
    assert (data.dataset["id"][:], data.rule) == (["x", "y"], "vizwiz-released")
    index.write_text(index.read_text().replace('"rule":"vizwiz-released"', '"rule":null'))
    with pytest.raises(UserError, match=r"are not scored by the same rule; read them one by one"):
        load_data(both, VQA)
    index.unlink()
    with pytest.raises(UserError, match=r"of tar files without an index, which are not scored by the same rule"):
        load_data(both, VQA)
