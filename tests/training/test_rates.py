"""Learning rates of their own: which parameters, at which rate, from the first step to the last."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file
from test_resume import interrupt_in_step_5
from torch import nn
from transformers import TrainerCallback

from padapter.training import AdapterTrainer, train
from padapter.training.rates import split_rates

P_AND_MU = re.compile(r"\.p_adapter_(p|mu)\.")


class Rates(TrainerCallback):
    """Writes down name -> (rate, decay) before every step, and the schedule's own rate."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, lr_scheduler=None, **kwargs):
        names = {id(value): name for name, value in model.named_parameters()}
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
        found = {
            names[id(value)]: (group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for value in group["params"]
        }
        self.steps.append(found)


@pytest.fixture
def rates(monkeypatch):
    watcher, original = Rates(), AdapterTrainer.__init__

    def watched(self, *args, callbacks, **kwargs):
        original(self, *args, callbacks=[*callbacks, watcher], **kwargs)

    monkeypatch.setattr(AdapterTrainer, "__init__", watched)
    return watcher


@pytest.mark.parametrize(
    ("method", "name", "pattern"),
    [("p-adapter", "p_mu_lr_factor", P_AND_MU), ("lora", "b_lr_factor", re.compile(r"\.lora_B\."))],
)
@pytest.mark.parametrize("factor", [8.0, 0.25])
def test_the_factor_holds_through_warmup_and_decay(options, rates, method, name, pattern, factor):
    done = options(
        method=method, method_options={name: factor}, epochs=2, warmup_ratio=0.34, lr_scheduler="cosine", log_every=1
    )
    report = train(done)
    assert len(rates.steps) == report.metrics["training"]["steps"] == 6
    common = []
    for step in rates.steps:
        own = {rate for key, (rate, _) in step.items() if pattern.search(key)}
        rest = {rate for key, (rate, _) in step.items() if not pattern.search(key)}
        assert len(own) == len(rest) == 1
        assert own.pop() == pytest.approx(factor * next(iter(rest)))
        common.append(rest.pop())
        assert all((decay == 0) == key_is_small(key, method) for key, (_, decay) in step.items())
    assert max(common) == pytest.approx(0.01)
    assert len(set(common)) > 3


def key_is_small(key, method):
    return method == "p-adapter" and (key.endswith(".bias") or P_AND_MU.search(key) is not None)


def test_without_factors_there_is_one_rate(options, rates):
    train(options(method="p-adapter"))
    assert all(len({rate for rate, _ in step.values()}) == 1 for step in rates.steps)


def test_the_log_shows_the_common_rate(options):
    import json
    from pathlib import Path

    done = options(method="p-adapter:p_mu_lr_factor=0.1", lr_scheduler="constant", log_every=1)
    train(done)
    lines = [json.loads(line) for line in (Path(done.output) / "log.jsonl").read_text().splitlines()]
    assert {line["learning_rate"] for line in lines if "learning_rate" in line} == {0.01}


def test_a_run_with_factors_resumes_exactly(options, tmp_path, monkeypatch):
    broken = options(method="p-adapter:p_mu_lr_factor=20", epochs=2)
    interrupt_in_step_5(broken, monkeypatch)
    from dataclasses import replace

    train(replace(broken, resume=True))
    train(replace(broken, output=str(tmp_path / "whole")))
    train(replace(broken, output=str(tmp_path / "plain"), method="p-adapter", method_options={}))
    resumed, whole, plain = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("run", "whole", "plain")
    )
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    exponents = [key for key in whole if key.endswith(("p_adapter_p", "p_adapter_mu"))]
    assert exponents
    assert all(not torch.equal(whole[key], plain[key]) for key in exponents)


def test_the_first_pattern_counts_and_no_parameter_is_lost():
    module = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    optimizer = torch.optim.AdamW(
        [
            {"params": [module["a"].weight, module["b"].weight], "weight_decay": 0.1},
            {"params": [module["a"].bias, module["b"].bias], "weight_decay": 0.0},
        ],
        lr=1.0,
    )
    split_rates(optimizer, module, {r"a\.bias": 5.0, r"^a\.": 2.0})
    names = {id(value): name for name, value in module.named_parameters()}
    assert [
        (group["lr"], group["weight_decay"], [names[id(value)] for value in group["params"]])
        for group in optimizer.param_groups
    ] == [
        (1.0, 0.1, ["b.weight"]),
        (2.0, 0.1, ["a.weight"]),
        (1.0, 0.0, ["b.bias"]),
        (5.0, 0.0, ["a.bias"]),
    ]
