"""The weights of the best score during training are kept, where that is asked for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_world import short_run

from padapter.errors import UserError
from padapter.evaluation import evaluate_source
from padapter.options import EvalOptions
from padapter.training import AdapterTrainer, train
from padapter.training.keeping import best_weights
from padapter.training.run import Interrupted, _Run

# 10 rows in batches of 4: 3 steps per epoch, 12 in all. Checkpoints of their own rhythm fall beside the scores.
LENGTH = {"epochs": 4, "eval_every": "3", "save_every": "5", "keep": "best", "score_base": False, "method": "lora"}
LENGTH |= {"learning_rate": 0.1}  # so that steps differ in what they say
SCORES = {3: 0.1, 6: 0.9, 9: 0.9, 12: 0.2}


@pytest.fixture(scope="module")
def scripted():
    """Scores during training are those of `SCORES`, whatever the model says; the last evaluation is real."""
    original = AdapterTrainer.__init__

    def made(self, *args, **kwargs):
        original(self, *args, **{**kwargs, "score": lambda: {"accuracy": SCORES[self.state.global_step], "rule": "r"}})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterTrainer, "__init__", made)
        yield


@pytest.fixture(scope="module")
def whole(scripted, model, data, tmp_path_factory):
    """A run without interruption, and what it reported."""
    done = short_run(
        model, data["vqa"], eval=data["vqa"], output=str(tmp_path_factory.mktemp("whole") / "run"), **LENGTH
    )
    return done, train(done).metrics["training"]


def weights(folder):
    return load_file(Path(folder) / "adapter_model.safetensors")


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)


def checkpoints(run):
    return sorted(path.name for path in (Path(run) / "checkpoints").iterdir())


def interrupted(options, owner, name, last=1):
    """Make a run whose call number `last` of a method is interrupted."""
    original, calls = getattr(owner, name), []

    def stops(*args, **kwargs):
        calls.append(1)
        if len(calls) == last:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, stops)
        with pytest.raises(Interrupted):
            train(options)


def test_the_first_of_the_best_is_kept_scored_and_named(whole, data):
    done, training = whole
    run = Path(done.output)
    assert training["steps"] == 12
    assert training["kept"] == {"weights": "best", "step": 6, "metric": "accuracy", "score": 0.9}
    assert checkpoints(run) == ["checkpoint-12", "checkpoint-6"]
    assert same(weights(run / "adapter"), weights(run / "checkpoints" / "checkpoint-6" / "weights"))
    assert not same(weights(run / "adapter"), weights(run / "checkpoints" / "checkpoint-12" / "weights"))
    assert "weights: of step 6, which had the best accuracy on the evaluation data" in (run / "README.md").read_text()
    # What is scored at the end is what is kept.
    again = EvalOptions(run=str(run), data=data["vqa"], split="validation", quiet=True, output=str(run / "eval"))
    evaluate_source(again)
    ours, theirs = (
        [json.loads(line)["text"] for line in (folder / "predictions.jsonl").read_text().splitlines()]
        for folder in (run, run / "eval")
    )
    assert ours == theirs


def test_a_run_that_is_interrupted_keeps_the_same(whole, tmp_path):
    """Once in a step after the best one, once when all steps are done."""
    broken = replace(whole[0], output=str(tmp_path / "run"))
    interrupted(broken, AdapterTrainer, "training_step", 9)
    assert checkpoints(broken.output) == ["checkpoint-6"]
    broken = replace(broken, resume=True)
    interrupted(broken, _Run, "_save_weights")
    report = train(broken)
    assert report.metrics["training"]["kept"] == whole[1]["kept"]
    assert same(weights(tmp_path / "run" / "adapter"), weights(Path(whole[0].output) / "adapter"))


def test_without_checkpoints_of_their_own_the_best_have_one(whole, tmp_path):
    done = replace(whole[0], save_every="never", output=str(tmp_path / "run"))
    assert train(done).metrics["training"]["kept"] == whole[1]["kept"]
    assert checkpoints(done.output) == ["checkpoint-6"]


def test_a_checkpoint_that_is_gone_is_named(whole, tmp_path):
    copy = tmp_path / "checkpoints"
    shutil.copytree(Path(whole[0].output) / "checkpoints", copy)
    assert best_weights(copy, "accuracy")[1] == copy / "checkpoint-6"
    shutil.rmtree(copy / "checkpoint-6")
    with pytest.raises(UserError, match=r"--keep: the checkpoint with the best score, .*checkpoint-6, is gone"):
        best_weights(copy, "accuracy")
    shutil.rmtree(copy / "checkpoint-12")
    with pytest.raises(UserError, match="is gone"):
        best_weights(copy, "accuracy")


def test_by_default_the_last_weights_stay(options, data):
    report = train(options(eval=data["vqa"], eval_every="3", method="lora", score_base=False))
    assert report.metrics["training"]["kept"] == {"weights": "last", "step": 3, "metric": None, "score": None}
    assert checkpoints(report.output) == ["checkpoint-3"]
