"""A benchmark's folder, from the official files to scores and to the file of its server."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "data" / "benchmarks"))

from benchmark_layouts import annotation, pictures, question, write

from padapter.evaluation import evaluate_source, predict_source
from padapter.evaluation.submit.convert import submit
from padapter.options import EvalOptions, PredictOptions, SubmitOptions


def vqav2(root):
    for split in ("val2014", "test2015"):
        found = [question(image, 0, "what color is it?") for image in (9, 11)]
        write(root / f"v2_OpenEnded_mscoco_{split}_questions.json", {"questions": found})
        pictures(root / split, *(f"COCO_{split}_{image:012d}.jpg" for image in (9, 11)))
    write(
        root / "v2_mscoco_val2014_annotations.json",
        {"annotations": [annotation(9, 0, "red"), annotation(11, 0, "2", "red")]},
    )
    return "vqa", "val", [{"question_id": 9000}, {"question_id": 11000}]


def vizwiz_vqa(root):
    for split in ("val", "test"):
        names = [f"VizWiz_{split}_{number:08d}.jpg" for number in (3, 4)]
        answers = {"answers": [{"answer": "cup", "answer_confidence": "yes"}] * 10, "answer_type": "other"}
        records = [{"image": name, "question": "what is it?"} for name in names]
        if split == "val":
            records = [record | answers | {"answerable": number} for number, record in enumerate(records)]
        write(root / "Annotations" / f"{split}.json", records)
        pictures(root / split, *names)
    return "vqa", "val", [{"image": "VizWiz_test_00000003.jpg"}, {"image": "VizWiz_test_00000004.jpg"}]


def vizwiz_caption(root):
    for split, first in (("val", 23431), ("test", 31181)):
        names = [f"VizWiz_{split}_{number:08d}.jpg" for number in (0, 1)]
        images = [{"id": first + number, "file_name": name} for number, name in enumerate(names)]
        captions = [{"id": n, "image_id": first + n, "caption": "a red cup", "is_precanned": False} for n in (0, 1)]
        write(
            root / "annotations" / f"{split}.json",
            {"images": images} | ({"annotations": captions} if first < 3e4 else {}),
        )
        pictures(root / split, *names)
    return "caption", "val", [{"image_id": 31181}, {"image_id": 31182}]


LAYOUTS = {"vqav2": vqav2, "vizwiz-vqa": vizwiz_vqa, "vizwiz-caption": vizwiz_caption}
RULES = {"vqav2": "vqa-official-2021", "vizwiz-vqa": "vizwiz-leave-one-out", "vizwiz-caption": "coco-caption-ptb"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_scored_by_its_own_rule_and_answered_for_its_server(tmp_path, name):
    task, split, wanted = LAYOUTS[name](tmp_path / "root")
    data = f"{name}:{tmp_path / 'root'}"
    asked = {"model": "shapes-blip", "task": task, "num_beams": 1, "quiet": True}
    scores = evaluate_source(EvalOptions(data=data, split=split, meteor=False if task == "caption" else None, **asked))
    assert scores["scores"]["rule"] == RULES[name]
    assert scores["scores"]["rows"] == 2
    assert ("unanswerable_ap" in scores["scores"]["metrics"]) == (name == "vizwiz-vqa")

    answers, output = tmp_path / "answers.jsonl", tmp_path / "server.json"
    predictions = predict_source(PredictOptions(data=data, split="test", output=str(answers), **asked))
    submit(SubmitOptions(predictions=str(answers), data=data, output=str(output)))
    written = json.loads(output.read_text())
    key = "caption" if task == "caption" else "answer"
    assert written == [record | {key: answer.text} for record, answer in zip(wanted, predictions, strict=True)]


def test_a_rule_that_is_named_wins(tmp_path):
    vizwiz_vqa(tmp_path)
    found = evaluate_source(
        EvalOptions(
            data=f"vizwiz-vqa:{tmp_path}",
            split="val",
            model="shapes-blip",
            task="vqa",
            rule="vizwiz-released",
            quiet=True,
        )
    )
    assert found["scores"]["rule"] == "vizwiz-released"
