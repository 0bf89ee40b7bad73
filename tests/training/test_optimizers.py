"""How AdamW computes a step, and that a checkpoint does not change it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_resume import interrupt_in_step_5
from torch import nn

from padapter.training import AdapterTrainer, train
from padapter.training.optimizers import can_be_fused, go_on_its_own_way


def adamw(parameter, **way):
    optimizer = torch.optim.AdamW([parameter], lr=0.1, **way)
    go_on_its_own_way(optimizer)
    return optimizer


def step(scaler, optimizer, parameter):
    """As the trainer makes one: gradients are unscaled, to be clipped, before the step."""
    parameter.grad = None
    scaler.scale(parameter.square().sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize(("before", "now"), [({}, {"fused": True}), ({"fused": True}, {}), ({}, {"foreach": True})])
def test_a_saved_state_goes_on_in_the_way_of_now(before, now):
    ours, theirs = (nn.Parameter(torch.arange(1.0, 4.0)) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu")
    steady, saved = adamw(theirs), adamw(ours, **before)
    for _ in range(2):
        step(scaler, steady, theirs)
        step(scaler, saved, ours)
    resumed = adamw(ours, **now)
    resumed.load_state_dict(saved.state_dict())
    assert {name: resumed.param_groups[0][name] for name in ("fused", "foreach")} == {
        "fused": now.get("fused"),
        "foreach": now.get("foreach"),
    }
    for _ in range(2):
        step(scaler, steady, theirs)
        step(scaler, resumed, ours)
    torch.testing.assert_close(ours, theirs)


def test_a_state_of_other_groups_is_still_refused():
    one, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    two = torch.optim.AdamW([{"params": [one]}, {"params": [other]}])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        adamw(nn.Parameter(torch.ones(2))).load_state_dict(two.state_dict())


def test_what_can_be_fused():
    whole = torch.arange(24.0).view(4, 6)
    kinds = {
        "rows": (whole[:2], True),
        "turned": (whole.t(), True),
        "number": (torch.tensor(1.0), True),
        "columns": (whole[:, :2], False),
        "every other": (whole[:, ::2], False),
    }
    for name, (values, possible) in kinds.items():
        module = nn.ParameterDict({name: nn.Parameter(values)})
        assert can_be_fused(module) is possible, name
        assert can_be_fused(module.requires_grad_(False)), name


def test_columns_of_a_larger_tensor_are_trained_by_themselves():
    """The fused step would change what lies between them."""
    larger = torch.arange(24.0).view(4, 6)
    module = nn.ParameterDict({"part": nn.Parameter(larger[:, :2])})
    before = larger.clone()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=can_be_fused(module))
    module["part"].square().sum().backward()
    optimizer.step()
    assert torch.equal(larger[:, 2:], before[:, 2:])
    assert (larger[1:, :2] < before[1:, :2]).all()


def test_a_run_made_before_steps_were_fused_is_resumed_with_fused_ones(options, monkeypatch):
    broken = options(epochs=2, save_every="never")
    with monkeypatch.context() as patch:
        patch.setattr("padapter.training.trainer.can_be_fused", lambda _: False)
        interrupt_in_step_5(broken, monkeypatch)
    saved = torch.load(Path(broken.output) / "checkpoints" / "checkpoint-5" / "optimizer.pt", weights_only=True)
    assert not any(group["fused"] for group in saved["param_groups"])
    made, original = [], AdapterTrainer._load_optimizer_and_scheduler

    def watched(self, checkpoint):
        original(self, checkpoint)
        made.append(getattr(self.optimizer, "optimizer", self.optimizer))

    monkeypatch.setattr(AdapterTrainer, "_load_optimizer_and_scheduler", watched)
    train(replace(broken, resume=True))
    (optimizer,) = made
    assert all(group["fused"] for group in optimizer.param_groups)
    assert {float(state["step"]) for state in optimizer.state.values()} == {6.0}
