"""Methods that are PEFT's own, through the whole command: train, resume, score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_resume import interrupt_in_step_5

from padapter.errors import UserError
from padapter.evaluation import evaluate_source
from padapter.options import EvalOptions, TrainOptions, options_from
from padapter.training import train


@pytest.mark.parametrize("method", ["ia3", "lora:init_lora_weights=pissa,r=4", "vera:r=8,vera_dropout=0.1"])
def test_it_resumes_and_is_scored(options, data, tmp_path, monkeypatch, method):
    broken = options(method=method, epochs=2, eval=data["vqa"], limit_eval=4)
    interrupt_in_step_5(broken, monkeypatch)
    # As the command line resumes: from the run's own config.yaml.
    again = options_from(TrainOptions, Path(broken.output) / "config.yaml", {"resume": True})
    report = train(again)
    train(replace(broken, output=str(tmp_path / "whole")))
    resumed, whole = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    scored = evaluate_source(EvalOptions(run=broken.output, data=data["vqa"], split="validation", limit=4, quiet=True))
    assert scored["scores"]["metrics"] == report.metrics["scores"]["after"]["metrics"]


def test_only_what_was_given_is_recorded(options):
    done = options(method="oft:oft_block_size=8,module_dropout=0.1")
    train(done)
    recorded = yaml.safe_load((Path(done.output) / "config.yaml").read_text())
    assert recorded["method"] == "oft"
    assert recorded["method_options"] == {
        "part": "text",
        "target_modules": None,
        "oft_block_size": 8,
        "module_dropout": 0.1,
    }


def test_the_learning_rate_must_be_given(options):
    with pytest.raises(UserError, match="--learning-rate: is needed, method 'ia3' has no default"):
        train(options(method="ia3", learning_rate=None))
