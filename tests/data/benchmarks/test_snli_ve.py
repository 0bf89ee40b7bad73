from __future__ import annotations

import pytest
from benchmark_layouts import ENTAILMENT, golden_lines, pictures, write, write_lines

from padapter.data import check_data, load_data

FLICKR = "flickr30k_images"


def flickr(record):
    return record["pairID"].partition(".jpg#")[0]


@pytest.fixture
def root(tmp_path):
    records = golden_lines("snli.jsonl")
    pictures(tmp_path / FLICKR, *{f"{flickr(record)}.jpg" for record in records})
    return tmp_path


SPELLINGS = {
    "Flickr30K_ID": lambda key: {"Flickr30K_ID": key},
    "Flikr30kID": lambda key: {"Flikr30kID": key},
    "Flickr30kID": lambda key: {"Flickr30kID": f"{key}.jpg"},
    "from pairID": lambda key: {},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_real_records_under_every_spelling_of_the_image_id(root, spelling):
    records = golden_lines("snli.jsonl")
    lines = [{**record, **SPELLINGS[spelling](flickr(record))} for record in records]
    if spelling != "from pairID":  # then the id decides
        lines = [{**line, "pairID": f"x{number}"} for number, line in enumerate(lines)]
    write_lines(root / "snli_ve_dev.jsonl", lines)
    data = load_data(f"snli-ve:{root}", ENTAILMENT, split="validation")
    kept = [(line, record) for line, record in zip(lines, records, strict=True) if record["gold_label"] != "-"]
    assert data.split == "dev"
    assert data.dataset["id"][:] == [line["pairID"] for line, _ in kept]
    assert data.dataset["hypothesis"][:] == [record["sentence2"] for _, record in kept]
    assert data.dataset["label"][:] == [record["gold_label"] for _, record in kept]
    assert [row["image"]["path"] for row in data.dataset] == [f"{root}/{FLICKR}/{flickr(r)}.jpg" for _, r in kept]
    assert "sentence1" not in data.dataset.column_names


def test_pairs_without_majority_and_pairs_of_visual_genome_are_dropped_and_counted(root):
    records = golden_lines("snli.jsonl")
    genome = {**records[0], "pairID": "vg_len10r1e", "captionID": "vg_len10"}
    write_lines(root / "snli_ve_train.jsonl", [*records, genome])
    report = check_data(f"snli-ve:{root}", ENTAILMENT, split="train")
    assert report.ok
    assert (report.rows, report.good, report.dropped) == (12, 9, 3)
    notes = "\n".join(report.notes)
    assert "2 rows: label '-' (no majority among the annotators), left out" in notes
    assert "1 rows: pair about a picture of Visual Genome, not of Flickr30k, left out" in notes


def test_labels_and_ids_that_cannot_be(root):
    record = golden_lines("snli.jsonl")[0]
    lines = [
        record,
        {**record, "pairID": "2", "Flickr30K_ID": "", "gold_label": "neutral"},
        {**record, "gold_label": 1},
    ]
    write_lines(root / "snli_ve_test.jsonl", lines)
    told = [str(problem) for problem in check_data(f"snli-ve:{root}", ENTAILMENT, split="test").problems]
    assert len(told) == 2
    assert "record 2: has none of Flickr30K_ID, Flikr30kID, Flickr30kID, and no pairID" in told[0]
    assert "record 3: the label is 1; expected one of entailment, neutral, contradiction" in told[1]


def test_blip_style(root):
    image = flickr(golden_lines("snli.jsonl")[0])
    words = ("Correct", "Incorrect", "Ambiguous", "Correct", "Right")
    rows = [{"img": f"flickr30k-images/{image}.jpg", "hypothesis": f"It is {word}.", "label_s": word} for word in words]
    write(root / "snli_ve_train.json", [*rows, {"img": f"{image}.jpg", "hypothesis": "", "label_s": "Correct"}])
    report = check_data(f"snli-ve:{root}", ENTAILMENT, split="train")
    assert ["'right'" in str(p) for p in report.problems] == [True]
    assert "1 rows: no words in 'hypothesis' (kept: the official scoring counts every row)" in report.notes
    data = load_data(f"snli-ve:{root}", ENTAILMENT, split="train", skip_bad_rows=True).dataset
    assert data["label"][:] == ["entailment", "contradiction", "neutral", "entailment", "entailment"]
    assert data["id"][:] == [f"{image}#{number}" for number in (1, 2, 3, 4, 6)]
    assert data[0]["image"]["path"] == f"{root}/{FLICKR}/{image}.jpg"
