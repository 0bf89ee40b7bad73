"""Whatever ends a command while it writes its results, nothing that was answered is asked again, and files agree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from padapter.backbones import BlipBackbone
from padapter.errors import UserError
from padapter.evaluation import evaluate_source, predict_source
from padapter.evaluation.journal import partial_paths
from padapter.options import EvalOptions, PredictOptions
from padapter.training import train


class KilledError(BaseException):
    pass


@pytest.fixture
def asked(monkeypatch):
    """How many rows the model was asked about."""
    found = []
    original = BlipBackbone.generate

    def spy(self, images, prompts, **settings):
        found.extend(prompts)
        return original(self, images, prompts, **settings)

    monkeypatch.setattr(BlipBackbone, "generate", spy)
    return found


@pytest.fixture
def kill(monkeypatch):
    """`kill("replace", "metrics.json")` ends what runs just before that file takes its place; or at "unlink"."""
    real = {name: getattr(Path, name) for name in ("replace", "unlink")}
    armed = []

    def step(name):
        def run(self, *arguments, **settings):
            path = Path(arguments[0]) if arguments else self
            if (name, path.name) in armed:
                armed.clear()
                raise KilledError
            return real[name](self, *arguments, **settings)

        return run

    for name in real:
        monkeypatch.setattr(Path, name, step(name))

    def arm(step):
        armed[:] = [step]

    return arm


@pytest.fixture
def common(model, data):
    settings = {"model": model, "task": "vqa", "data": data["vqa"], "num_beams": 1, "max_new_tokens": 3}
    return settings | {"eval_batch_size": 4, "quiet": True, "device": "cpu"}


@pytest.fixture
def whole(common, tmp_path):
    evaluate_source(EvalOptions(**common, output=str(tmp_path / "whole")))
    return (tmp_path / "whole" / "predictions.jsonl").read_bytes()


STEPS = [
    ("unlink", "metrics.json"),
    ("replace", "predictions.jsonl"),
    ("replace", "metrics.json"),
    ("unlink", "predictions.jsonl.partial"),
]


@pytest.mark.parametrize("step", STEPS, ids=" ".join)
@pytest.mark.parametrize("old", [False, True], ids=["new folder", "over old results"])
def test_eval(common, whole, tmp_path, asked, kill, step, old):
    folder = tmp_path / "torn"
    options = EvalOptions(**common, output=str(folder))
    if old:  # other answers, of fewer rows
        evaluate_source(replace(options, limit=4))
        options = replace(options, overwrite=True)
        asked.clear()
    kill(step)
    with pytest.raises(KilledError):
        evaluate_source(options)
    assert len(asked) == 10
    metrics, answers = folder / "metrics.json", folder / "predictions.jsonl"
    if metrics.exists():  # beside the answers that it scores
        assert json.loads(metrics.read_text())["scores"]["rows"] == len(answers.read_text().splitlines())
    if step == STEPS[-1]:  # all is there
        with pytest.raises(UserError, match="already holds results"):
            evaluate_source(replace(options, overwrite=False))
    else:
        evaluate_source(options)
        assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "predictions.jsonl"]
    assert len(asked) == 10
    assert answers.read_bytes() == whole
    assert json.loads(metrics.read_text())["scores"]["rows"] == 10


@pytest.mark.parametrize("step", [("replace", "p.jsonl"), ("unlink", "p.jsonl.partial")], ids=" ".join)
def test_predict(common, tmp_path, asked, kill, step):
    options = PredictOptions(**common, output=str(tmp_path / "p.jsonl"))
    kill(step)
    with pytest.raises(KilledError):
        predict_source(options)
    if step[0] == "unlink":  # all is there
        with pytest.raises(UserError, match="exists"):
            predict_source(options)
        options = replace(options, overwrite=True)
    assert len(predict_source(options)) == len(asked) == 10
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 10
    assert not partial_paths(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    "step",
    [
        ("replace", "predictions_base.jsonl"),
        ("unlink", "predictions_base.jsonl.partial"),
        ("replace", "predictions.jsonl"),
        ("replace", "README.md"),
        ("unlink", "predictions.jsonl.partial"),
    ],
    ids=" ".join,
)
def test_train(options, data, asked, kill, step):
    settings = {"eval": data["vqa"], "max_steps": 1, "eval_batch_size": 4, "save_every": "1"}
    kill(step)
    with pytest.raises(KilledError):
        train(options(**settings))
    run = train(options(**settings, resume=True))
    assert len(asked) == 20  # once before training, once after
    assert run.metrics["status"] == "finished"
    assert {run.metrics["scores"][when]["rows"] for when in ("before", "after")} == {10}
    assert (run.output / "README.md").is_file()
    assert not list(run.output.glob("*.partial*"))


def test_a_run_is_killed_between_its_answers_and_its_scores(options, data, asked, kill, monkeypatch):
    """`metrics.json` is written several times; the last one is meant."""
    from padapter.training.run_folder import RunFolder

    original = RunFolder._add

    def dies(self, entries):
        if entries.get("status") == "finished":
            raise KilledError
        return original(self, entries)

    settings = {"eval": data["vqa"], "max_steps": 1, "eval_batch_size": 4, "save_every": "1", "score_base": False}
    monkeypatch.setattr(RunFolder, "_add", dies)
    with pytest.raises(KilledError):
        train(options(**settings))
    monkeypatch.setattr(RunFolder, "_add", original)
    assert train(options(**settings, resume=True)).metrics["scores"]["after"]["rows"] == 10
    assert len(asked) == 10
