"""A run that was killed continues, and ends where the uninterrupted one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load_file
from tiny_world import short_run

from padapter.errors import UserError
from padapter.evaluation.processes import Processes
from padapter.methods import METHODS
from padapter.training import AdapterTrainer, train
from padapter.training.callbacks import StopOnInterrupt
from padapter.training.checkpoints import complete_checkpoints
from padapter.training.run import Interrupted

# 10 rows in batches of 4: 3 steps per epoch, 12 in all; checkpoints fall in the middle of epochs and at their ends.
LENGTH = {"epochs": 4, "save_every": "2", "keep_checkpoints": 2, "log_every": 1}

KILLED = """
import os, signal, sys, yaml
from padapter.options import TrainOptions
from padapter.training import AdapterTrainer, train

method, call = sys.argv[2], int(sys.argv[3])
original, calls = getattr(AdapterTrainer, method), 0

def dies(self, *args, **kwargs):
    global calls
    calls += 1
    if calls == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args, **kwargs)

setattr(AdapterTrainer, method, dies)
train(TrainOptions(**yaml.safe_load(open(sys.argv[1]))))
"""


def weights(run):
    return load_file(Path(run) / "adapter" / "adapter_model.safetensors")


def assert_same_weights(run, other):
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def run_and_kill(options, tmp_path, method, call):
    config, script = tmp_path / "options.yaml", tmp_path / "killed.py"
    config.write_text(yaml.safe_dump(asdict(options)))
    script.write_text(KILLED)
    done = subprocess.run([sys.executable, str(script), str(config), method, str(call)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture(scope="module")
def uninterrupted(model, data, tmp_path_factory):
    """The same run without an interruption."""
    done = short_run(model, data["vqa"], output=str(tmp_path_factory.mktemp("whole") / "run"), **LENGTH)
    train(done)
    return Path(done.output)


@pytest.mark.parametrize(
    ("method", "call", "last"),
    [
        pytest.param("training_step", 8, 6, marks=pytest.mark.slow, id="in a step"),
        pytest.param("_save_rng_state", 3, 4, id="while writing a checkpoint"),
    ],
)
def test_a_killed_run_reaches_the_same_weights(options, uninterrupted, tmp_path, method, call, last):
    broken = options(**LENGTH)
    run_and_kill(broken, tmp_path, method, call)
    checkpoints = Path(broken.output) / "checkpoints"
    assert complete_checkpoints(checkpoints)[-1].name == f"checkpoint-{last}"
    assert any(checkpoints.glob(".*.incomplete")) == (method == "_save_rng_state")

    report = train(replace(broken, resume=True))

    assert_same_weights(broken.output, uninterrupted)
    assert report.metrics["training"]["steps"] == 12
    steps = [yaml.safe_load(line)["step"] for line in (Path(broken.output) / "log.jsonl").read_text().splitlines()]
    assert steps == [*range(1, 13), 12]
    assert not any(checkpoints.glob(".*.incomplete"))


def test_other_seed_gives_other_weights(options, uninterrupted):
    """Otherwise equal weights above would prove nothing."""
    train(options(**LENGTH, seed=43))
    with pytest.raises(AssertionError):
        assert_same_weights(options().output, uninterrupted)


def interrupt_in_step_5(options, monkeypatch):
    original, calls = AdapterTrainer.training_step, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", interrupted)
        with pytest.raises(Interrupted, match=f"padapter train --resume --output {options.output}"):
            train(options)
    assert len(calls) == 5


def test_interrupt_saves_says_how_to_resume_and_resumes(options, uninterrupted, monkeypatch):
    broken = options(**LENGTH)
    before = signal.getsignal(signal.SIGINT)  # a shell's background job ignores the signal
    interrupt_in_step_5(broken, monkeypatch)
    assert complete_checkpoints(Path(broken.output) / "checkpoints")[-1].name == "checkpoint-5"
    assert signal.getsignal(signal.SIGINT) is before

    train(replace(broken, resume=True))
    assert_same_weights(broken.output, uninterrupted)


@pytest.mark.parametrize(
    ("count", "asked_elsewhere", "seconds", "at_once"),
    [(1, False, 0.1, True), (2, False, 0.1, False), (2, False, 5.0, True), (2, True, 0.1, False)],
    ids=["twice", "passed on by a launcher", "twice in several processes", "passed on after another process was first"],
)
def test_one_ctrl_c_counts_once(monkeypatch, capfd, count, asked_elsewhere, seconds, at_once):
    clock = iter((100.0, 100.0 + seconds))
    monkeypatch.setattr("padapter.training.callbacks.time", SimpleNamespace(monotonic=lambda: next(clock)))
    stop = StopOnInterrupt(Processes(0, count))
    stop.requested = asked_elsewhere
    interrupts = []
    for _ in range(2):
        try:  # a KeyboardInterrupt that gets through would end all tests
            stop._note(signal.SIGINT, None)
            interrupts.append(False)
        except KeyboardInterrupt:
            interrupts.append(True)
    assert interrupts == [False, at_once]
    assert stop.requested
    assert capfd.readouterr().err.count("stopping after this step") == 1


@pytest.mark.parametrize("part", ["_load_rng_state", "_load_optimizer_and_scheduler"])
def test_equal_weights_need_the_whole_state(options, uninterrupted, monkeypatch, part):
    """Without a part of the checkpoint the weights differ, so the comparisons above would notice its loss."""
    broken = options(**LENGTH)
    interrupt_in_step_5(broken, monkeypatch)
    monkeypatch.setattr(AdapterTrainer, part, lambda *_: None)
    train(replace(broken, resume=True))
    with pytest.raises(AssertionError):
        assert_same_weights(broken.output, uninterrupted)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"p-adapter"}))
def test_every_method_resumes(options, tmp_path, monkeypatch, method):
    broken = options(method=method, epochs=2)
    interrupt_in_step_5(broken, monkeypatch)
    train(replace(broken, resume=True))
    train(replace(broken, output=str(tmp_path / "whole")))
    name = "model/model.safetensors" if method == "full" else "adapter/adapter_model.safetensors"
    resumed, whole = load_file(tmp_path / "run" / name), load_file(tmp_path / "whole" / name)
    assert all((resumed[key] == whole[key]).all() for key in whole)


def test_killed_after_training_only_evaluates(options, data, monkeypatch):
    broken = options(eval=data["vqa"], **LENGTH)
    with monkeypatch.context() as patch:
        patch.setattr("padapter.training.run._Run._save_weights", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(Interrupted):
            train(broken)
    before = (Path(broken.output) / "predictions_base.jsonl").stat().st_mtime_ns
    monkeypatch.setattr(AdapterTrainer, "train", lambda *_, **__: pytest.fail("trained again"))

    report = train(replace(broken, resume=True))

    assert report.metrics["status"] == "finished"
    assert report.metrics["training"]["last_loss"] is not None
    assert report.metrics["scores"]["before"]["rows"] == report.metrics["scores"]["after"]["rows"] == 10
    assert (Path(broken.output) / "predictions_base.jsonl").stat().st_mtime_ns == before


def test_resuming_a_finished_run_changes_nothing(options):
    done = options()
    first = train(done)
    assert train(replace(done, resume=True)).metrics == first.metrics


def test_resume_refuses_another_configuration(options):
    done = options()
    train(done)
    with pytest.raises(UserError, match=r"--batch-size was 4 and is 2; --learning-rate was 0\.01 and is 0\.5"):
        train(replace(done, resume=True, batch_size=2, learning_rate=0.5))
    with pytest.raises(UserError, match=r"--set was .*'p': 1\.5.* and is .*'p': 1\.25"):
        train(replace(done, resume=True, method_options={"p": "1.25"}))


def test_resume_refuses_changed_data(options, data, tmp_path, monkeypatch):
    copy = tmp_path / "data"
    copy.mkdir()
    (copy / "images").symlink_to(Path(data["vqa"]) / "images")
    text = (Path(data["vqa"]) / "train.jsonl").read_text()
    (copy / "train.jsonl").write_text(text)
    broken = options(train=str(copy / "train.jsonl"))
    with monkeypatch.context() as patch:
        patch.setattr("padapter.training.run._Run._save_weights", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(Interrupted):
            train(broken)
    (copy / "train.jsonl").write_text(text.replace("blue", "green"))
    with pytest.raises(UserError, match="have changed since checkpoint-3 was written"):
        train(replace(broken, resume=True))


def test_resume_needs_a_run(options):
    with pytest.raises(UserError, match="holds no run"):
        train(options(resume=True))
