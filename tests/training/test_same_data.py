"""What a run that is continued says of training data that are not what it began with."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from padapter.data import load_data
from padapter.data.benchmarks import vqav2
from padapter.errors import UserError
from padapter.tasks import VqaTask
from padapter.training.checkpoints import write_state
from padapter.training.same_data import RECORD, UNWEIGHTED, check_same_data, data_state

FILE = "vqa_karpathy_train.json"
ROWS = [
    {
        "dataset": "vqa",
        "image": "val2014/COCO_val2014_000000000002.jpg",
        "question": "What?",
        "answer": ["red", "blue"],
    },
    {"dataset": "vg", "image": "VG_100K/2.jpg", "question": "Who?", "answer": "a man"},
]


@pytest.fixture
def blip(tmp_path):
    """A BLIP-style file with a row of Visual Genome; `load` reads it, with changes to that row."""
    for number, row in enumerate(ROWS):
        path = tmp_path / row["image"]
        path.parent.mkdir()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)

    def load(**changes):
        rows = [ROWS[0] | {"question_id": 1}, ROWS[1] | {"question_id": 2} | changes]
        (tmp_path / FILE).write_text(json.dumps(rows))
        return load_data(f"vqav2:{tmp_path}", VqaTask(), split="karpathy-train")

    return load


def refusal(tmp_path, before, now):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    write_state(folder, before)
    with pytest.raises(UserError) as caught:
        check_same_data(folder, now, "the data")
    return str(caught.value)


def test_the_same_data_pass(blip, tmp_path):
    write_state(tmp_path, data_state(blip()))
    check_same_data(tmp_path, blip(), "the data")


def test_rows_read_before_they_had_a_weight(blip, tmp_path, monkeypatch):
    """The same files, read by a version that gave Visual Genome no weight and remembered one fingerprint alone."""
    monkeypatch.setattr(vqav2, "GENOME_WEIGHT", None)
    before = {RECORD: blip().fingerprint}
    monkeypatch.undo()
    said = refusal(tmp_path, before, blip())
    assert "rows of 'the data' have weights now, and had none when checkpoint-3 was written" in said
    assert "rows of Visual Genome in BLIP-style files weigh 0.2 by now" in said
    assert "--overwrite" in said


def test_other_weights(blip, tmp_path):
    said = refusal(tmp_path, data_state(blip(weight=0.5)), blip())
    assert "weights of rows of 'the data' have changed since checkpoint-3" in said


@pytest.mark.parametrize("record", [(RECORD,), (RECORD, UNWEIGHTED)], ids=["older", "of now"])
def test_other_rows(blip, tmp_path, record):
    before = data_state(blip(answer="a woman"))
    said = refusal(tmp_path, {name: before[name] for name in record}, blip())
    assert "the training data 'the data' have changed since checkpoint-3 was written (rows, texts or pictures)" in said
