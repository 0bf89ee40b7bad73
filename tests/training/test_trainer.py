"""The trainer's own arithmetic: order, accumulation, decay, gradients, checkpoints."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from padapter.backbones import load_backbone
from padapter.data import load_data
from padapter.errors import UserError
from padapter.tasks import VqaTask
from padapter.training import AdapterTrainer, train
from padapter.training.batches import FAILURE, Collator, EpochSampler
from padapter.training.callbacks import DIVERGED, DivergedError, Log
from padapter.training.checkpoints import complete_checkpoints, rotate, step_of, written_whole
from padapter.training.defaults import LEARNING_RATES, total_steps
from padapter.training.gradients import GradientCheck, untrained
from padapter.training.trainer import batch_units


def trained(options, tmp_path, name, **changes):
    train(options(output=str(tmp_path / name), method="lora", **changes))
    return load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("task", ["vqa", "entailment"], ids=["sequence loss", "token loss"])
def test_accumulated_batches_are_one_batch(options, tmp_path, model, task, monkeypatch):
    """5 + 5 rows in one batch, or in pieces of 2 (the last one smaller): the same weights but for rounding."""
    # Dropout draws per forward pass, so that pieces would differ by chance.
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)
    # AdamW divides by the gradient's size, which would hide a wrong scale; SGD shows it.
    monkeypatch.setattr(
        AdapterTrainer,
        "get_optimizer_cls_and_kwargs",
        staticmethod(lambda args, model=None: (torch.optim.SGD, {"lr": args.learning_rate})),
    )
    # Fused attention drops weights by itself, which the line above does not reach.
    fixed = {
        "attention": "eager",
        "task": task,
        "max_steps": 4,
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
        "learning_rate": 0.05,
    }
    whole = trained(options, tmp_path, "whole", batch_size=5, **fixed)
    pieces = trained(options, tmp_path, "pieces", batch_size=2, gradient_accumulation=3, limit_train=5, **fixed)
    whole_of_five = trained(options, tmp_path, "five", batch_size=5, limit_train=5, **fixed)
    assert all(torch.allclose(pieces[name], whole_of_five[name], atol=1e-6) for name in pieces)
    assert any(not torch.allclose(pieces[name], whole[name], atol=1e-4) for name in pieces)


def test_units_of_a_batch():
    batch = {
        "image_index": torch.tensor([0, 0, 1]),
        "labels": torch.tensor([[5, 1, 2, -100], [-100, -100, 3, 4], [-100, 7, -100, -100]]),
        "weights": torch.tensor([0.5, 0.5, 1.0]),
    }
    assert batch_units(batch, "sequence") == 2
    assert batch_units(batch, "token") == 0.5 * 2 + 0.5 * 2 + 1.0 * 1


def test_a_target_without_a_token_is_a_mistake_in_the_data(data):
    """Data are checked without a tokenizer; in data workers and several processes the message has to travel."""
    backbone = load_backbone("shapes-blip")
    read = backbone.processor.tokenizer
    backbone.processor.tokenizer = lambda text, **how: SimpleNamespace(
        input_ids=[] if text == "unheard" else read(text, **how).input_ids
    )
    first, second = load_data(data["vqa"], VqaTask()).dataset.select([0, 1])
    collator = Collator(backbone, VqaTask(), returns_failures=True, origin="pictures/train.jsonl")
    said = collator([first, {**second, "answers": ["red", "unheard"]}])
    why = "target 'unheard' has no token; drop it or give the answer a text."
    assert said == {FAILURE: f"pictures/train.jsonl, row 'train-2': {why}"}


def test_order_depends_on_seed_and_epoch_alone():
    sampler = EpochSampler(50, seed=3)
    first = list(sampler)
    torch.manual_seed(99)
    assert list(sampler) == first
    sampler.start_epoch(1)
    second = list(sampler)
    assert second != first
    assert [row for _, row in second] != [row for _, row in first]
    assert sorted(second) == [(1, row) for row in range(50)]
    assert list(EpochSampler(50, seed=4)) != first


def test_only_matrices_decay():
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    module.register_parameter("p", nn.Parameter(torch.ones(())))
    module.register_parameter("mu", nn.Parameter(torch.ones(4)))
    assert AdapterTrainer.get_decay_parameter_names(object.__new__(AdapterTrainer), module) == ["0.weight"]


def test_a_parameter_without_gradient_is_named():
    module = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2, bias=False)})
    module["used"](torch.ones(1, 2)).sum().backward()
    check = GradientCheck(module)
    with pytest.warns(
        UserWarning, match=r"4 of 10 trainable .* no gradient .*: 4 in the other part \(idle\.weight\)\. "
    ):
        check.on_pre_optimizer_step(None, None, None)
    assert check.found.counts == {"other": 4}
    with pytest.raises(UserError, match=r"4 of 10 .*idle\.weight.*or train in one process"):
        GradientCheck(module).on_pre_optimizer_step(SimpleNamespace(world_size=2), None, None)
    module["used"].requires_grad_(False)
    with pytest.raises(UserError, match=r"none of the 4 trainable parameters got a gradient.*idle\.weight"):
        GradientCheck(module).on_pre_optimizer_step(None, None, None)
    module["used"].requires_grad_(True)
    module["idle"].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradientCheck(module).on_pre_optimizer_step(None, None, None)
    with pytest.raises(UserError, match="nothing is trainable"):
        GradientCheck(module.requires_grad_(False)).on_pre_optimizer_step(None, None, None)


def test_gradients_are_looked_at_once(monkeypatch):
    module = nn.Linear(2, 2)
    module(torch.ones(1, 2)).sum().backward()
    check, looked = GradientCheck(module), []
    monkeypatch.setattr("padapter.training.gradients.untrained", lambda model: looked.append(1) or untrained(model))
    for _ in range(3):
        check.on_pre_optimizer_step(None, None, None)
    assert len(looked) == 1


def test_the_gradient_check_is_part_of_training(options, monkeypatch):
    """A parameter that the loss never sees is found by `train` itself, said, and kept with the results."""
    from padapter.methods import METHODS

    lora = type(METHODS["lora"])
    original = lora.apply

    def with_idle_parameter(self, backbone, settings):
        original(self, backbone, settings)
        backbone.model.register_parameter("idle", nn.Parameter(torch.ones(2)))

    monkeypatch.setattr(lora, "apply", with_idle_parameter)
    with pytest.warns(
        UserWarning, match=r"2 of [\d,]+ trainable .*: 2 in the other part \(model\.idle\).*is in: decoder\."
    ):
        report = train(options(method="lora"))
    assert report.metrics["training"]["without_gradient"] == {"other": 2}
    assert "- without a gradient: 2 in the other part" in (Path(report.output) / "README.md").read_text(
        encoding="utf-8"
    )


def test_a_loss_that_is_no_number_stops_training(options, monkeypatch):
    original = AdapterTrainer.compute_loss
    monkeypatch.setattr(AdapterTrainer, "compute_loss", lambda *a, **k: original(*a, **k) * float("nan"))
    with pytest.raises(DivergedError, match="the loss is nan at step 1; use a smaller learning rate"):
        train(options(method="lora"))
    metrics = json.loads((Path(options().output) / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["status"] == DIVERGED


def test_a_checkpoint_is_whole_or_absent(tmp_path):
    def half():
        with written_whole(tmp_path, 2) as folder:
            (folder / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert complete_checkpoints(tmp_path) == []
    for step in (2, 10, 9):
        with written_whole(tmp_path, step) as folder:
            assert not (tmp_path / f"checkpoint-{step}").exists()
            (folder / "whole").write_text("x")
    assert [step_of(path) for path in complete_checkpoints(tmp_path)] == [2, 9, 10]
    rotate(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_log_drops_what_comes_again_and_half_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "loss": float(step)}) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"step": 4, "lo')
    log = Log(path, resumed_at=2)
    assert path.read_text() == "\n".join(lines[:2]) + "\n"
    assert log.last_loss == 2.0
    assert Log(path).last_loss is None
    assert path.read_text() == ""


@pytest.mark.parametrize(("changes", "steps"), [({"epochs": 2.5}, 8), ({"max_steps": 5}, 5), ({"batch_size": 3}, 4)])
def test_total_steps(options, changes, steps):
    """10 rows: 3 steps per epoch at batch size 4."""
    assert total_steps(10, options(**changes)) == steps


def test_every_method_has_a_learning_rate():
    from padapter.methods import METHODS

    assert LEARNING_RATES.keys() == METHODS.keys()
