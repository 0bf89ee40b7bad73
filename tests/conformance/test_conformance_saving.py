"""Saved and loaded through PEFT and through transformers, under the same and under another adapter name."""

from __future__ import annotations

import io
import json

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors import safe_open
from transformers import BlipForConditionalGeneration

OTHER_NAMES = ["default", "vqa", "0", "adapter"]


def leaves(case) -> dict[str, list[str]]:
    """Saved leaves per attention and per feed-forward block, written out by hand."""
    config = case.config()
    linear = ["down.weight", "down.bias", "up.weight", "up.bias"]
    if case.tuner == "bottleneck":
        scale = ["scale"] if config.scaling == "learned" else []
        attention = linear + scale if config.location != "feedforward" else []
        feed_forward = linear + scale if config.location != "attention" else []
        return {"attention": attention, "feed_forward": feed_forward}
    attention = list(linear)
    if config.form == "bottleneck" and config.gate:
        attention += ["gate.weight", "gate.bias"]
    if config.message_passing == "pgnn" and config.learn_p:
        attention += ["p", "mu"]
    if config.message_passing == "gcnii":
        attention += ["mapping"]
    return {"attention": attention, "feed_forward": linear if config.adapts_ffn else []}


def test_exactly_these_tensors_are_saved(case, adapted, tmp_path):
    adapted.save_pretrained(tmp_path)
    expected = set()
    for layer in range(2):
        at = f"base_model.model.text_decoder.bert.encoder.layer.{layer}."
        for leaf in leaves(case)["attention"]:
            expected |= {f"{at}{kind}.output.dense.{case.prefix}{leaf}" for kind in ("attention", "crossattention")}
        expected |= {f"{at}output.dense.{case.prefix}{leaf}" for leaf in leaves(case)["feed_forward"]}
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert set(file.keys()) == expected
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
    }


@pytest.mark.parametrize(("name", "low_memory"), [*((name, False) for name in OTHER_NAMES), ("vqa", True)])
@pytest.mark.in_turn("name", "low_memory")
def test_peft_round_trip(case, adapted, fresh_blip, batch, helpers, tmp_path, name, low_memory):
    adapted.save_pretrained(tmp_path)
    assert type(PeftConfig.from_pretrained(tmp_path)) is type(case.config())
    loaded = PeftModel.from_pretrained(fresh_blip(), tmp_path, adapter_name=name, low_cpu_mem_usage=low_memory)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(helpers.logits(loaded.eval(), batch), helpers.logits(adapted, batch))


@pytest.mark.parametrize("name", [None, *OTHER_NAMES])
@pytest.mark.in_turn("name", start=2)
def test_transformers_round_trip(adapted, fresh_blip, batch, helpers, tmp_path, name):
    adapted.save_pretrained(tmp_path)
    model = fresh_blip()
    model.load_adapter(tmp_path, adapter_name=name)
    assert torch.equal(helpers.logits(model.eval(), batch), helpers.logits(adapted, batch))


def test_transformers_add_save_load_delete(case, tiny_blip, fresh_blip, batch, helpers, tmp_path):
    base = helpers.logits(tiny_blip, batch)
    tiny_blip.add_adapter(case.config(), adapter_name="first")
    helpers.disturb(tiny_blip)
    before = helpers.logits(tiny_blip.eval(), batch)
    assert (before - base).abs().max() > 1e-2
    tiny_blip.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    model = fresh_blip()
    model.load_adapter(tmp_path, adapter_name="second")
    assert torch.equal(helpers.logits(model.eval(), batch), before)
    model.disable_adapters()
    assert torch.equal(helpers.logits(model, batch), base)
    model.enable_adapters()
    assert torch.equal(helpers.logits(model, batch), before)
    model.delete_adapter("second")
    assert torch.equal(helpers.logits(model, batch), base)


def test_from_pretrained_of_an_adapter_directory(tiny_blip, case, batch, helpers, tmp_path):
    tiny_blip.save_pretrained(tmp_path / "base")
    model = get_peft_model(BlipForConditionalGeneration.from_pretrained(tmp_path / "base"), case.config()).eval()
    helpers.disturb(model)
    model.save_pretrained(tmp_path / "adapter")
    again = BlipForConditionalGeneration.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(helpers.logits(again, batch), helpers.logits(model, batch))


def test_loaded_to_go_on_training(case, adapted, fresh_blip, batch, tmp_path):
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh_blip(), tmp_path, adapter_name="more", is_trainable=True)
    assert loaded.get_nb_trainable_parameters() == adapted.get_nb_trainable_parameters()
    loaded(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in loaded.parameters() if p.requires_grad)


def test_injected_without_a_peft_model(case, adapted, fresh_blip, batch, helpers):
    state = get_peft_model_state_dict(adapted)
    model = inject_adapter_in_model(case.config(), fresh_blip(), adapter_name="other")
    outcome = set_peft_model_state_dict(model, state, adapter_name="other")
    assert not outcome.unexpected_keys
    assert not [key for key in outcome.missing_keys if case.prefix in key]
    assert torch.equal(helpers.logits(model.eval(), batch), helpers.logits(adapted, batch))


def test_unknown_field_in_a_saved_config(case, adapted, fresh_blip, batch, helpers, tmp_path):
    adapted.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"from_the_future": 1}))
    with pytest.warns(UserWarning, match="from_the_future"):
        loaded = PeftModel.from_pretrained(fresh_blip(), tmp_path)
    assert torch.equal(helpers.logits(loaded.eval(), batch), helpers.logits(adapted, batch))


def test_pickled_whole(adapted, batch, helpers):
    file = io.BytesIO()
    torch.save(adapted, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(helpers.logits(again, batch), helpers.logits(adapted, batch))
    again.unload()


def test_modules_to_save(case, tiny_blip, fresh_blip, batch, helpers, tmp_path):
    model = get_peft_model(tiny_blip, case.config(modules_to_save=["transform"])).eval()
    helpers.disturb(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh_blip(), tmp_path, adapter_name="other").eval()
    assert torch.equal(helpers.logits(loaded, batch), helpers.logits(model, batch))
