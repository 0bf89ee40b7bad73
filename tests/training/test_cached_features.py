"""Runs that keep the frozen encoder's output."""

import json
from pathlib import Path

import pytest

from padapter.errors import UserError
from padapter.evaluation import evaluate_source
from padapter.options import EvalOptions
from padapter.training import train


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PADAPTER_CACHE", str(tmp_path / "cache"))


def answers(report):
    return [json.loads(line)["text"] for line in (report.output / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", ["vqa", "entailment", "caption"])
def test_a_run_gives_the_same_with_and_without(options, data, tmp_path, task):
    common = {"task": task, "eval": data[task], "score_base": False, "epochs": 2}
    plain = train(options(**common))
    cold = train(options(**common, cache_features=True, output=str(tmp_path / "cold")))
    warm = train(options(**common, cache_features=True, num_workers=1, output=str(tmp_path / "warm")))
    assert plain.metrics["training"]["features"] is None
    assert cold.metrics["training"]["features"]["computed"] == 10
    assert warm.metrics["training"]["features"]["computed"] == 0
    assert warm.metrics["training"]["features"]["kept"] == 20
    for run in (cold, warm):
        assert run.metrics["training"]["last_loss"] == pytest.approx(plain.metrics["training"]["last_loss"], rel=1e-3)
        assert answers(run) == answers(plain)


def test_an_evaluation_uses_what_the_run_has_kept(options, data, monkeypatch):
    run = train(options(eval=data["vqa"], cache_features=True)).output
    monkeypatch.setattr("padapter.backbones.cross_attending.encode_images", lambda *_: pytest.fail("encoded again"))
    monkeypatch.setattr("padapter.backbones.features.FeatureCache._encoded", lambda *_: pytest.fail("encoded again"))
    with pytest.raises(pytest.fail.Exception):
        evaluate_source(EvalOptions(run=str(run), data=data["vqa"], quiet=True))
    monkeypatch.undo()
    monkeypatch.setenv("PADAPTER_CACHE", str(run.parent / "cache"))
    monkeypatch.setattr("padapter.backbones.features.FeatureCache._encoded", lambda *_: pytest.fail("encoded again"))
    found = evaluate_source(EvalOptions(run=str(run), data=data["vqa"], quiet=True, cache_features=True))
    trained = json.loads((run / "metrics.json").read_text())["scores"]["after"]["metrics"]
    assert found["scores"]["metrics"] == trained


def test_it_may_be_switched_on_when_a_run_is_resumed(options, data):
    run = train(options(epochs=2)).output
    (run / "metrics.json").write_text(json.dumps({"status": "running"}))
    done = train(options(epochs=2, resume=True, cache_features=True))
    assert done.metrics["status"] == "finished"


def test_full_fine_tuning_is_refused_before_training(options):
    with pytest.raises(UserError, match="--cache-features: the image encoder is trained"):
        train(options(method="full", cache_features=True))
    assert not Path(options().output).exists()
