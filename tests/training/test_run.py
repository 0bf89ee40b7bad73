"""What a run leaves behind, for every method and task."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from padapter.backbones import load_backbone
from padapter.errors import UserError
from padapter.evaluation import evaluate_source
from padapter.methods import METHODS, get_method
from padapter.options import EvalOptions, TrainOptions, options_from
from padapter.training import train

ADAPTER = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
COMMON = {
    "README.md",
    "config.yaml",
    "log.jsonl",
    "metrics.json",
    "predictions.jsonl",
    "predictions_base.jsonl",
    "preprocessing.json",
}


def files(run):
    found = {str(path.relative_to(run)) for path in Path(run).rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("checkpoints/")}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_exact_files_and_a_card_that_runs(options, data, method, monkeypatch):
    done = options(method=method, eval=data["vqa"], limit_eval=4)
    report = train(done)
    run = Path(done.output)
    found = files(run)
    if method == "full":
        assert {name for name in found if not name.startswith("model/")} == COMMON
        assert {"model/config.json", "model/model.safetensors"} <= found
    else:
        assert found == COMMON | ADAPTER
        saved = load_file(run / "adapter" / "adapter_model.safetensors")
        assert sum(tensor.numel() for tensor in saved.values()) == report.metrics["training"]["parameters"]["trainable"]
    assert (run / "checkpoints" / "checkpoint-3" / "optimizer.pt").exists()
    assert report.metrics["training"]["parameters"]["trainable"] > 0
    code = re.search(r"```python\n(.*?)```", (run / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(run)
    namespace = {}
    exec(code.group(1), namespace)
    loaded = namespace["model"] if "model" in namespace else namespace["backbone"].model
    assert sum(parameter.numel() for parameter in loaded.parameters()) > 40_000


def test_metrics_say_where_numbers_come_from(options, data):
    done = options(eval=data["vqa"], seed=7, epochs=2, limit_train=6)
    metrics = train(done).metrics
    assert json.loads((Path(done.output) / "metrics.json").read_text()) == metrics
    assert metrics["status"] == "finished"
    for moment in ("before", "after"):
        assert metrics["scores"][moment]["metrics"].keys() == {"accuracy"}
        assert metrics["scores"][moment]["rule"]
        assert metrics["scores"][moment]["rows"] == 10
    assert metrics["seed"] == 7
    assert metrics["data"]["train"]["rows"] == 6
    assert metrics["data"]["train"]["fingerprint"] != metrics["data"]["eval"]["fingerprint"]
    assert metrics["training"]["steps"] == 4
    assert metrics["training"]["seconds"] >= 4 * metrics["training"]["seconds_per_step"] > 0
    assert metrics["memory"]["resident_bytes"] > 100 * 2**20
    assert metrics["provenance"]["versions"]["torch"] == torch.__version__
    assert metrics["provenance"]["hardware"]["threads"] == torch.get_num_threads()


def test_config_is_resolved_and_reproduces_the_run(options, tmp_path):
    done = options(learning_rate=None, method="p-adapter:p=1.25", method_options={})
    train(done)
    config = options_from(TrainOptions, Path(done.output) / "config.yaml")
    assert config.learning_rate == 5e-4
    assert config.method_options["p"] == 1.25
    assert "mu" in config.method_options
    train(replace(config, output=str(tmp_path / "again")))
    first, second = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("run", "again"))
    assert all((first[name] == second[name]).all() for name in first)


def test_predictions_are_complete_and_in_order(options, data):
    done = options(eval=data["vqa"])
    metrics = train(done).metrics
    lines = [json.loads(line) for line in (Path(done.output) / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"validation-{number}" for number in range(1, 11)]
    assert all({"text", "score", "question", "answers"} <= line.keys() for line in lines)
    assert {line["rule"] for line in lines} == {metrics["scores"]["after"]["rule"]}


def test_base_is_scored_unadapted_and_only_if_wanted(options, data, tmp_path):
    done = options(eval=data["vqa"], learning_rate=0.1)
    train(done)
    base, after = ((tmp_path / "run" / name).read_text() for name in ("predictions_base.jsonl", "predictions.jsonl"))
    assert base != after
    without = train(options(eval=data["vqa"], score_base=False, output=str(tmp_path / "other")))
    assert without.metrics["scores"]["before"] is None
    assert not (tmp_path / "other" / "predictions_base.jsonl").exists()


@pytest.mark.parametrize("task", ["entailment", "caption"])
def test_other_tasks_learn(options, data, task):
    """Ten rows of two kinds are learned by heart."""
    done = options(task=task, eval=data[task], method="full", epochs=12, learning_rate=0.01, eval_every="18")
    metrics = train(done).metrics
    log = [json.loads(line) for line in (Path(done.output) / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    scored = [line for line in log if any(name.startswith("eval_") for name in line)]
    assert [line["epoch"] for line in scored] == [6, 12]
    assert [line["eval_rule"] for line in scored] == [metrics["scores"]["after"]["rule"]] * 2
    primary = metrics["primary_metric"]
    assert metrics["scores"]["after"]["metrics"][primary] == scored[-1][f"eval_{primary}"]
    if task == "entailment":
        assert metrics["asking"]["inference"] == "rank"
        kept = json.loads((Path(done.output) / "candidates.json").read_text())["candidates"]
        assert kept == ["incorrect", "correct"]
        confusion = json.loads((Path(done.output) / "metrics.json").read_text())["scores"]["after"]["details"][
            "confusion"
        ]
        assert {gold: sum(row.values()) for gold, row in confusion.items()} == {"entailment": 5, "contradiction": 5}
        correct = sum(confusion[label][label] for label in confusion)
        assert correct / 10 == metrics["scores"]["after"]["metrics"]["accuracy"]


def test_a_run_is_not_overwritten_by_accident(options, tmp_path):
    done = options(method="lora")
    train(done)
    note = tmp_path / "run" / "my notes.txt"
    note.write_text("keep me")
    with pytest.raises(UserError, match=r"not empty; .*--resume .*--overwrite"):
        train(done)
    train(replace(done, overwrite=True, method="adapter", method_options={}))
    assert note.read_text() == "keep me"
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["peft_type"] == "BOTTLENECK"


FRESH = """
import sys
import padapter, torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(sys.argv[1]), sys.argv[2]).eval()
ids = torch.arange(6).reshape(1, 6)
logits = model(pixel_values=torch.ones(1, 3, 16, 16), input_ids=ids).logits
print(repr(logits.double().abs().sum().item()))
"""


def test_adapter_gives_the_same_answers_through_peft_in_a_fresh_process(options, model):
    done = options(learning_rate=0.05)
    train(done)
    folder = Path(done.output) / "adapter"
    run = subprocess.run([sys.executable, "-c", FRESH, model, str(folder)], capture_output=True, text=True, check=True)

    backbone = load_backbone(model)
    inputs = {"pixel_values": torch.ones(1, 3, 16, 16), "input_ids": torch.arange(6).reshape(1, 6)}
    base = backbone.model.eval()(**inputs).logits.double().abs().sum().item()
    get_method("p-adapter").load(backbone, folder)
    ours = backbone.model.eval()(**inputs).logits.double().abs().sum().item()
    assert float(run.stdout) == pytest.approx(ours, rel=1e-6)
    assert abs(ours - base) > 1e-3 * base


def test_attention_step_by_step_trains_the_same(options, data, tmp_path, monkeypatch):
    common = {"eval": data["vqa"], "score_base": False, "epochs": 2}
    fused = train(options(**common)).metrics["training"]["last_loss"]
    plain, refuse = F.scaled_dot_product_attention, lambda *_, **__: pytest.fail("fused")
    monkeypatch.setattr(F, "scaled_dot_product_attention", refuse)
    run = train(options(**common, attention="eager", output=str(tmp_path / "eager")))
    assert run.metrics["training"]["last_loss"] == pytest.approx(fused, rel=1e-4)
    evaluate = EvalOptions(run=str(run.output), data=data["vqa"], quiet=True, attention="eager")
    scores = evaluate_source(evaluate)["scores"]["metrics"]
    monkeypatch.setattr(F, "scaled_dot_product_attention", plain)
    assert scores == evaluate_source(replace(evaluate, attention="sdpa"))["scores"]["metrics"]


def test_max_length_beyond_the_model_is_refused(options):
    with pytest.raises(UserError, match=r"--max-length: .* at most 40 tokens, got 41"):
        train(options(max_length=41))
