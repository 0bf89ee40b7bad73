"""Whatever a source holds, importers, checks and readers of shards read it or raise a UserError that says why."""

from __future__ import annotations

import contextlib
import io
import json
import random
import tarfile

import pytest
from PIL import Image

from padapter.data import check_data, infer_task
from padapter.data.benchmarks import BENCHMARKS
from padapter.data.shards.write import write_shards
from padapter.errors import UserError
from padapter.importers import IMPORTERS
from padapter.tasks import TASKS, get_task

RECORD = {
    "image": "a.png",
    "question": ["What?"],
    "answer": {"a": None},
    "id": [1],
    "conversations": [1],
    "image_id": {},
}
GARBAGE = {
    "nothing": b"",
    "space": b" \n",
    "zeros": bytes(64),
    "half a mark": b"\xff\xfe\x00",
    "bytes": random.Random(0).randbytes(2000),
    "opened list": b"[",
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 5000,
    "number": b"1",
    "text": b'"x"',
    "null": b"null",
    "list of numbers": b"[1, 2]",
    "list of lists": b"[[]]",
    "object": b"{}",
    "empty lists": b'{"images": [], "annotations": [], "questions": [], "data": []}',
    "no lists": b'{"images": 3, "annotations": {}, "questions": null, "data": "x"}',
    "lists of numbers": b'{"images": [1], "annotations": [2], "questions": [3], "data": [4]}',
    "empty records": b'{"images": [{}], "annotations": [{}], "questions": [{}], "data": [{}]}',
    "odd record": json.dumps([RECORD]).encode(),
    "odd records": json.dumps({name: [RECORD] for name in ("images", "annotations", "questions", "data")}).encode(),
    "half a pair": json.dumps({"image": "a.png", "caption": "\ud800"}).encode(),
    "header": b"image,question,answer\n",
    "open quotation": b'a,b\n"x',
}
FILES = {
    "csv": ("t.csv", "t.tsv"),
    "folder": ("metadata.jsonl", "metadata.csv", "a.txt"),
    "coco": ("captions.json",),
    "vqa": ("rows.json", "rows.jsonl", "v2_OpenEnded_mscoco_val2014_questions.json"),
    "vqa-rad": ("VQA_RAD.json",),
    "nlvr": ("dev.json",),
}
READ = ("train.jsonl", "train.json", "train.csv", "train.shards.jsonl", "dataset_dict.json", "t.tar")


def tell(call) -> None:
    """Anything but a UserError fails."""
    with contextlib.suppress(UserError):
        call()


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    return tmp_path


def test_every_importer_is_here():
    assert FILES.keys() == IMPORTERS.keys()


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_importers(folder, content):
    for name, files in FILES.items():
        for place, file in enumerate(files):
            source = folder / name / str(place)
            source.mkdir(parents=True)
            (source / file).write_bytes(content)
            (source / "a.png").write_bytes((folder / "a.png").read_bytes())
            if "questions" in file:
                (source / "v2_mscoco_val2014_annotations.json").write_bytes(content)
            tell(lambda source=source, name=name: IMPORTERS[name](source, source / "out"))
            tell(lambda path=source / file, name=name: IMPORTERS[name](path, path.parent / "out2"))


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_readers(folder, content):
    for name in READ:
        source = folder / name.replace(".", "-")
        source.mkdir()
        (source / name).write_bytes(content)
        for spec in (str(source / name), str(source), f"wds:{source / name}"):
            tell(lambda spec=spec: infer_task(spec, TASKS.values()))
            tell(lambda spec=spec: check_data(spec, get_task("vqa")))
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name in ("1.png", "1.json", "2.png", "2.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    tell(lambda: check_data(f"wds:{folder / 'x.tar'}", get_task("caption")))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks(tmp_path, name):
    benchmark = BENCHMARKS[name]
    for place, content in enumerate(GARBAGE.values()):
        root = tmp_path / str(place)
        for split in benchmark.splits:
            pictures = root / split.pictures.folders[0]
            pictures.mkdir(parents=True, exist_ok=True)
            for picture in ("COCO_val2014_000000000001.jpg", "VizWiz_train_00000001.jpg", "1.jpg"):
                Image.new("RGB", (4, 4)).save(pictures / picture)
            for needed in (needed for form in split.forms for needed in form.files.values()):
                (root / needed.folders[0]).mkdir(exist_ok=True)
                (root / needed.folders[0] / needed.name).write_bytes(content)
        tell(lambda root=root: check_data(f"{name}:{root}", get_task(benchmark.task)))


def test_a_damaged_index_of_shards(folder):
    """One value after another is replaced, or its line is cut: what is wrong is named with its line."""
    task = get_task("vqa")
    (folder / "rows.jsonl").write_text('{"image": "a.png", "question": "What?", "answer": "yes"}\n')
    write_shards(str(folder / "rows.jsonl"), folder / "shards", task)
    path = folder / "shards" / "train.shards.jsonl"
    whole = path.read_text()
    records = [json.loads(line) for line in whole.splitlines()]
    wrong = [None, -1, 1.5, "x", [], {}, [0, 0, 10**12], [{}]]
    for place, record in enumerate(records):
        for changed in [*({**record, key: value} for key in record for value in wrong), *wrong]:
            lines = [*records[:place], changed, *records[place + 1 :]]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            tell(lambda: check_data(str(folder / "shards"), task))
    path.write_text(whole.replace('"at":[0', '"at":[7'))
    with pytest.raises(UserError, match=r"train\.shards\.jsonl, line 2: is damaged"):
        check_data(str(folder / "shards"), task)
    path.write_bytes(whole.encode().replace(b"What", b"\xff\xff"))
    with pytest.raises(UserError, match=r"train\.shards\.jsonl, line 3: is damaged"):
        check_data(str(folder / "shards"), task)
