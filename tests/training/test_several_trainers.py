"""Two processes train as one does: the same steps but for rounding, one run folder, one set of scores."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_world import write_model

from padapter.errors import UserError
from padapter.training import AdapterTrainer, train
from padapter.training.batches import IDLE, EpochSampler, SharedBatches
from padapter.training.run import Interrupted

# 10 rows in batches of 4: the last batch of an epoch has two rows, one for each.
STEPS = {"batch_size": 4, "epochs": 1, "log_every": 1, "eval_batch_size": 4}


@pytest.fixture(scope="module")
def sober(tmp_path_factory):
    """A model without dropout, which draws in every process by itself."""
    return write_model(tmp_path_factory.mktemp("sober"), dropout=0.0)


@pytest.fixture
def exact(monkeypatch):
    """SGD: AdamW divides by the gradient's size, which would hide a wrong scale."""
    monkeypatch.setattr(
        AdapterTrainer,
        "get_optimizer_cls_and_kwargs",
        staticmethod(lambda args, model=None: (torch.optim.SGD, {"lr": args.learning_rate})),
    )


def weights(run):
    return load_file(Path(run) / "adapter" / "adapter_model.safetensors")


def assert_close(run, other, atol=5e-6):
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=atol, rtol=0)


def log(run):
    return [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]


def answers(run):
    return [
        {name: value for name, value in json.loads(line).items() if name != "candidates"}
        for line in (Path(run) / "predictions.jsonl").read_text().splitlines()
    ]


def files(run):
    return sorted(str(path.relative_to(run)) for path in Path(run).rglob("*") if path.is_file())


def test_shares_are_the_batches_of_one():
    order = EpochSampler(10, seed=3)
    order.start_epoch(1)
    whole = [list(order)[start : start + 4] for start in range(0, 10, 4)]
    shares = [list(SharedBatches(order, 4, index, 3)) for index in range(3)]
    assert [len(SharedBatches(order, 4, index, 3)) for index in range(3)] == [3, 3, 3]
    for number, batch in enumerate(whole):
        mine = [share[number] for share in shares]
        assert sorted(visit for one in mine for visit in one if IDLE not in visit) == sorted(batch)
        assert all(mine)
    assert shares[2][2] == [(*whole[2][0], IDLE)]  # two rows for three processes


@pytest.mark.parametrize(
    ("task", "method", "accumulation", "limit"),
    [
        ("vqa", "p-adapter", 1, None),
        pytest.param("entailment", "lora", 3, 9, marks=pytest.mark.slow),
    ],
    ids=["sequence loss", "token loss, one process idle at the end"],
)
def test_two_train_as_one(two, options, data, sober, tmp_path, exact, task, method, accumulation, limit):
    """9 rows in batches of 4 leave one row for two processes."""
    settings = {
        **STEPS, "model": sober, "task": task, "method": method, "train": data[task], "eval": data[task],
        "eval_every": "epoch",
        "gradient_accumulation": accumulation, "limit_train": limit, "weight_decay": 0.0, "learning_rate": 0.05,
        "save_every": "epoch", "keep": "best",
    }  # fmt: skip
    if task == "entailment":
        settings["inference"] = "rank"
    train(options(**settings, output=str(tmp_path / "one")))

    def work(index):
        report = train(options(**settings, output=str(tmp_path / "two")))
        return report.metrics["scores"], report.metrics["training"]["processes"]

    (scores, count), other = two(work)
    assert (scores, count) == tuple(other)
    assert count == 2
    assert_close(tmp_path / "one", tmp_path / "two")
    one = json.loads((tmp_path / "one" / "metrics.json").read_text())
    for when in ("before", "after"):
        assert one["scores"][when]["metrics"] == scores[when]["metrics"]
    assert answers(tmp_path / "one") == answers(tmp_path / "two")
    for ours, theirs in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"train_runtime", "train_samples_per_second", "train_steps_per_second"}:
            assert ours[name] == (
                pytest.approx(theirs[name], rel=1e-4, abs=1e-6) if name != "eval_rule" else theirs[name]
            )
    expected = [name.replace("rng_state.pth", "rng_state_0.pth") for name in files(tmp_path / "one")]
    extra = {name.replace("rng_state_0", "rng_state_1") for name in expected if "rng_state_0" in name}
    assert files(tmp_path / "two") == sorted({*expected, *extra})
    assert extra


def test_only_the_main_process_writes_and_prints(two, options, data, tmp_path, capfd):
    settings = options(**STEPS, output=str(tmp_path / "run"), eval=data["vqa"])

    def work(index):
        from padapter.cli.handlers import train_command

        if index:
            for module in ("padapter.training.run_folder", "padapter.training.checkpoints"):
                for name in ("write_json", "write_text", "write_state"):
                    if hasattr(sys.modules[module], name):
                        setattr(sys.modules[module], name, None)
        train_command(settings)
        sys.stdout.flush()

    two(work)
    assert capfd.readouterr().out.count("results in") == 1


def test_resume(two, options, data, tmp_path):
    """With dropout: every process goes on with its own random numbers, and the weights are those of no interruption."""
    settings = {**STEPS, "epochs": 2, "save_every": "2", "method": "lora"}
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    original = AdapterTrainer.training_step

    def work(index):
        train(options(**settings, output=str(whole)))
        calls = []

        def interrupted(self, *arguments, **rest):
            calls.append(1)
            if len(calls) == 3 and index == 1:  # Ctrl-C arrives in one process only
                callback = next(it for it in self.callback_handler.callbacks if hasattr(it, "requested"))
                callback.requested = True
            return original(self, *arguments, **rest)

        AdapterTrainer.training_step = interrupted
        with pytest.raises(Interrupted, match="--resume --output"):
            train(options(**settings, output=str(torn)))
        AdapterTrainer.training_step = original
        status = json.loads((torn / "metrics.json").read_text())["status"] if not index else None
        train(options(**settings, output=str(torn), resume=True))
        return len(calls), status

    assert two(work) == [[3, "interrupted"], [3, None]]
    assert_close(whole, torn, atol=0)
    assert [entry["step"] for entry in log(torn)] == [1, 2, 3, 3, 4, 5, 6, 6]  # each part ends with its times


@pytest.mark.slow
def test_processes_draw_different_numbers(two, options, tmp_path):
    """Otherwise dropout would drop the same units in both shares of a batch."""
    seen = []
    original = AdapterTrainer.training_step

    def step(self, *arguments, **rest):
        seen.append(torch.random.get_rng_state().sum().item())
        return original(self, *arguments, **rest)

    def work(index):
        AdapterTrainer.training_step = step
        train(options(batch_size=4, max_steps=1, output=str(tmp_path / "run")))
        return seen

    one, other = two(work)
    assert one != other


@pytest.mark.slow
def test_one_goes_on_where_two_stopped(two, options, sober, tmp_path, exact):
    settings = {**STEPS, "epochs": 2, "model": sober, "save_every": "2", "method": "lora", "learning_rate": 0.05}
    train(options(**settings, output=str(tmp_path / "whole")))

    def work(index):
        original = AdapterTrainer._save_checkpoint

        def dies(self, *arguments):
            original(self, *arguments)
            self.processes.gather(None)
            os._exit(7)

        AdapterTrainer._save_checkpoint = dies
        train(options(**settings, output=str(tmp_path / "torn")))

    assert two(work) == [None, None]
    train(options(**settings, output=str(tmp_path / "torn"), resume=True))
    assert_close(tmp_path / "whole", tmp_path / "torn")


def test_a_lost_process_is_noticed(two, options, tmp_path):
    def work(index):
        original = AdapterTrainer.training_step

        def dies(self, *arguments, **rest):
            if index:
                os._exit(7)
            return original(self, *arguments, **rest)

        AdapterTrainer.training_step = dies
        with pytest.raises(UserError, match="process 1 of 2: another process stopped"):
            train(options(**STEPS, output=str(tmp_path / "run")))
        return True

    assert two(work) == [True, None]
    assert not (tmp_path / "run").exists()  # nothing was trained


def test_a_bad_picture_of_one_is_told_by_all(two, options, data, tmp_path):
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(data["vqa"], folder)
    settings = options(**STEPS, train=str(folder), output=str(tmp_path / "run"))

    def work(index):
        from padapter.training.batches import Collator

        original = Collator._collate

        def refuse(self, rows):
            if index:
                raise UserError("7.png: cannot be read")
            return original(self, rows)

        Collator._collate = refuse
        with pytest.raises(UserError, match=r"^7\.png: cannot be read$"):
            train(settings)
        return True

    assert two(work) == [True, True]


def test_a_batch_that_cannot_be_shared(two, options, data, tmp_path):
    def work(index):
        with pytest.raises(
            UserError, match="--batch-size: 3 rows cannot be shared equally by 2 processes; give a mult"
        ):
            train(options(**STEPS | {"batch_size": 3}))
        common = options(**STEPS, output=str(tmp_path / "run"))
        with pytest.raises(
            UserError, match="process 2 of 2 differs from the first one in: --limit-train, --seed, training data;"
        ):
            train(replace(common, seed=index, limit_train=9) if index else common)
        return True

    assert two(work) == [True, True]
