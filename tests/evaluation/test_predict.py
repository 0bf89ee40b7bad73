"""Answers: complete, in the rows' order, the same whatever the batches are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from padapter.backbones import load_backbone
from padapter.data import load_data
from padapter.errors import UserError
from padapter.evaluation import evaluate, load_source, predict_rows, resolve_asking
from padapter.evaluation.asking import with_prompt
from padapter.evaluation.results import write_json, write_text
from padapter.options import InferenceOptions, PredictOptions
from padapter.tasks import get_task

VQA = get_task("vqa")


class Spy:
    """A backbone that only remembers what it was asked."""

    def __init__(self, backbone):
        self.backbone = backbone
        self.batches = []

    def __getattr__(self, name):
        return getattr(self.backbone, name)

    def generate(self, images, prompts, **settings):
        self.batches.append(list(prompts))
        return self.backbone.generate(images, prompts, **settings)


@pytest.fixture
def backbone(model):
    return load_backbone(model)


@pytest.fixture
def rows(data):
    return load_data(data["vqa"], VQA, split="test")


def asking(**changes):
    return resolve_asking(VQA, InferenceOptions(num_beams=1, max_new_tokens=3, **changes))


def test_order_and_batches(backbone, rows):
    spy, recorded = Spy(backbone), []
    found = predict_rows(
        spy,
        VQA,
        rows.dataset,
        asking(eval_batch_size=4),
        record=lambda batch: recorded.extend(p.id for p in batch),
        quiet=True,
    )
    assert [prediction.id for prediction in found] == rows.dataset["id"]
    assert [len(batch) for batch in spy.batches] == [4, 4, 2]
    lengths = [len(prompt) for batch in spy.batches for prompt in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(recorded) == sorted(rows.dataset["id"])
    assert recorded != rows.dataset["id"]
    singly = predict_rows(backbone, VQA, rows.dataset, asking(eval_batch_size=1), quiet=True)
    assert found == singly


@pytest.mark.parametrize("kind", ["bytes", "path"])
@pytest.mark.parametrize("inference", ["generate", "rank"])
def test_questions_about_one_picture_share_its_encoding(backbone, rows, tmp_path, kind, inference):
    """Ten rows about three pictures, the rows of one never next to each other."""
    files = [image["bytes"] or Path(image["path"]).read_bytes() for image in rows.dataset["image"][:3]]
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)

    def shown(row, index):
        place = index % 3
        return {"image": {"bytes": files[place], "path": None} if kind == "bytes" else {"path": str(paths[place])}}

    table = rows.dataset.map(shown, with_indices=True, features=rows.dataset.features)
    encoded = []
    backbone.base_model.vision_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: encoded.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    asked = replace(asking(eval_batch_size=10), inference=inference)
    words = {"candidates": ["red", "two", "yes"], "quiet": True}
    found = predict_rows(backbone, VQA, table, asked, **words)
    assert encoded == [3]
    assert [prediction.id for prediction in found] == table["id"]
    fours = predict_rows(backbone, VQA, table, replace(asked, batch_size=4), **words)
    assert sum(encoded) <= 3 + 3 + 2  # a picture is encoded again only where a batch ends among its rows
    singly = predict_rows(backbone, VQA, table, replace(asked, batch_size=1), **words)
    for one, four, all_at_once in zip(singly, fours, found, strict=True):
        assert one.text == four.text == all_at_once.text
        if inference == "rank":
            assert one.scores == pytest.approx(all_at_once.scores, abs=1e-4)


def test_model_comes_back_in_its_mode(backbone, rows):
    backbone.model.train()
    backbone.model.vision_model.eval()
    predict_rows(backbone, VQA, rows.dataset.select([0]), asking(), quiet=True)
    assert backbone.model.text_decoder.training
    assert not backbone.model.vision_model.training


def test_ranking_takes_the_likeliest(backbone, rows):
    words = ["red", "blue", "two", "green"]
    found = predict_rows(backbone, VQA, rows.dataset, replace(asking(), inference="rank"), candidates=words, quiet=True)
    for prediction in found:
        assert prediction.scores.keys() == set(words)
        assert prediction.scores[prediction.text] == max(prediction.scores.values())
    few = predict_rows(
        backbone,
        VQA,
        rows.dataset,
        replace(asking(), inference="rank", rank_candidates=2),
        candidates=words,
        quiet=True,
    )
    assert {len(prediction.scores) for prediction in few} == {2}
    with pytest.raises(UserError, match="'rank' needs candidates"):
        predict_rows(backbone, VQA, rows.dataset, replace(asking(), inference="rank"), quiet=True)


def test_answers_are_written_as_they_come_and_then_in_order(backbone, rows, tmp_path, monkeypatch):
    output = tmp_path / "deep" / "predictions.jsonl"
    original = type(backbone).generate

    def fails_late(self, images, prompts, **settings):
        if (tmp_path / "deep" / "predictions.jsonl.partial").read_text().count("\n") == 9:
            raise RuntimeError
        return original(self, images, prompts, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(type(backbone), "generate", fails_late)
        with pytest.raises(RuntimeError):
            evaluate(backbone, VQA, rows, asking(eval_batch_size=4), output=output, quiet=True)
    assert not output.exists()

    result = evaluate(backbone, VQA, rows, asking(eval_batch_size=4), output=output, quiet=True)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["id"] for line in lines] == rows.dataset["id"]
    assert [line["score"] for line in lines] == [result.per_item[key] for key in rows.dataset["id"]]
    assert [path.name for path in output.parent.iterdir()] == ["predictions.jsonl"]
    assert result.summary()["rule"] == result.rule
    assert result.rows == 10


def test_asking_takes_the_tasks_defaults_and_refuses_too_short(backbone):
    caption = get_task("caption")
    found = resolve_asking(caption, InferenceOptions())
    assert (found.num_beams, found.max_new_tokens, found.min_new_tokens) == (5, 40, 5)
    assert resolve_asking(get_task("entailment"), InferenceOptions()).inference == "rank"
    with pytest.raises(UserError, match="--max-new-tokens: task 'caption' writes at least 5 tokens, got 4"):
        resolve_asking(caption, InferenceOptions(max_new_tokens=4))
    assert resolve_asking(caption, InferenceOptions(max_new_tokens=4, min_new_tokens=0)).min_new_tokens == 0
    assert resolve_asking(caption, InferenceOptions(max_new_tokens=25, min_new_tokens=8)).min_new_tokens == 8
    with pytest.raises(UserError, match="--min-new-tokens: is 41, but at most 40 tokens are written"):
        resolve_asking(caption, InferenceOptions(min_new_tokens=41))


def test_prompt_template(backbone, rows):
    assert with_prompt(VQA, None) is VQA
    spy = Spy(backbone)
    asked = with_prompt(VQA, "the picture : {question} yes")
    predict_rows(spy, asked, rows.dataset.select([0]), asking(), quiet=True)
    assert spy.batches == [[f"the picture : {VQA.prompt(rows.dataset[0])} yes"]]
    with pytest.raises(UserError, match="--prompt: "):
        with_prompt(VQA, "no place")


def test_files_are_whole_or_absent(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"é": 1})
    with pytest.raises(TypeError):
        write_text(path, 3)
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": 1}


@pytest.mark.parametrize(
    ("given", "expected"), [({}, (2, 25, 8)), ({"min_new_tokens": 0}, (2, 25, 0)), ({"num_beams": 1}, (1, 25, 8))]
)
def test_a_run_is_asked_as_it_was_trained_unless_said_otherwise(tmp_path, given, expected):
    settings = "task: caption\nmodel: shapes-blip\ntrain: t\noutput: o\nnum_beams: 2\n"
    (tmp_path / "config.yaml").write_text(settings + "max_new_tokens: 25\nmin_new_tokens: 8\n")
    (tmp_path / "adapter").mkdir()
    source = load_source(PredictOptions(run=str(tmp_path), data="d", **given), load_model=False)
    assert (source.asking.num_beams, source.asking.max_new_tokens, source.asking.min_new_tokens) == expected
