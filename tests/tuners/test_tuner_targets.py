"""Which modules get an adapter, and what is said when they cannot."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from transformers import BlipForQuestionAnswering, BlipTextLMHeadModel

from padapter.errors import UserError
from padapter.tuners import BottleneckConfig, PAdapterConfig


def targeted(model) -> list[str]:
    return sorted(model.base_model.targeted_module_names)


def blip_sites(layers, prefix="text_decoder.bert."):
    kinds = ("attention.output.dense", "crossattention.output.dense")
    return sorted(f"{prefix}encoder.layer.{i}.{kind}" for i in layers for kind in kinds)


def test_defaults_of_blip(tiny_blip, fresh_blip):
    assert targeted(get_peft_model(tiny_blip, PAdapterConfig())) == blip_sites([0, 1])
    one = get_peft_model(fresh_blip(), PAdapterConfig(layers_to_transform=1, ffn_adapter=True))
    feed_forward = "text_decoder.bert.encoder.layer.1.output.dense"
    assert targeted(one) == sorted([*blip_sites([1]), feed_forward])


def test_default_targets_survive_saving(tiny_blip, tmp_path):
    model = get_peft_model(tiny_blip, PAdapterConfig(layers_to_transform=[0]))
    model.save_pretrained(tmp_path)
    loaded = PAdapterConfig.from_pretrained(tmp_path)
    assert targeted(get_peft_model(model.unload(), loaded)) == blip_sites([0])


def test_other_blip_models(tiny_blip):
    vqa = BlipForQuestionAnswering(tiny_blip.config)
    assert targeted(get_peft_model(vqa, PAdapterConfig())) == blip_sites([0, 1])
    text = BlipTextLMHeadModel(tiny_blip.config.text_config)
    assert targeted(get_peft_model(text, PAdapterConfig())) == blip_sites([0, 1], "bert.")


def test_text_encoder_by_name(tiny_blip):
    model = BlipForQuestionAnswering(tiny_blip.config).eval()
    batch = {
        "pixel_values": torch.randn(1, 3, 32, 32),
        "input_ids": torch.randint(3, 40, (1, 4)),
        "labels": torch.randint(3, 40, (1, 3)),
    }
    with torch.no_grad():
        before = model(**batch).loss
        adapted = get_peft_model(model, PAdapterConfig(target_modules=r"text_encoder\..*attention\.output\.dense"))
        assert adapted.eval()(**batch).loss != before


def test_unknown_model_type_asks_for_targets():
    for config in (PAdapterConfig(), BottleneckConfig()):
        with pytest.raises(UserError, match=r"no default `target_modules` for Sequential.*none.*register_arch"):
            get_peft_model(nn.Sequential(nn.Linear(2, 2)), config)


def test_targets_that_match_nothing(tiny_blip):
    with pytest.raises(NoMatchingPeftModuleError, match="nowhere"):
        get_peft_model(tiny_blip, PAdapterConfig(target_modules=["nowhere"]))


def test_target_that_is_no_attention_output(tiny_blip):
    before = [(name, type(module)) for name, module in tiny_blip.named_modules()]
    with pytest.raises(
        UserError,
        match=r"'text_decoder.*self\.query' \(Linear\).*'\.\.output\.dense' of BlipTextSelfAttention.*register_arch",
    ):
        get_peft_model(tiny_blip, PAdapterConfig(target_modules=["attention.output.dense", "query"]))
    assert [(name, type(module)) for name, module in tiny_blip.named_modules()] == before


def test_feed_forward_target_needs_the_option(tiny_blip):
    with pytest.raises(UserError, match="ffn_adapter=True"):
        get_peft_model(tiny_blip, PAdapterConfig(target_modules=r".*layer\.0\.output\.dense"))


@pytest.mark.parametrize("name", ["a.b", "", "keys", "forward"])
def test_adapter_names_that_cannot_be(tiny_blip, fresh_blip, name):
    with pytest.raises(UserError, match="adapter name"):
        get_peft_model(tiny_blip, PAdapterConfig(), adapter_name=name)
    model = get_peft_model(fresh_blip(), PAdapterConfig())
    with pytest.raises(UserError, match="adapter name"):
        model.add_adapter(name, PAdapterConfig())
    assert list(model.peft_config) == ["default"]


def test_adapter_name_inside_module_names_warns(tiny_blip):
    with pytest.warns(UserWarning, match="'layer' occurs in module names"):
        get_peft_model(tiny_blip, PAdapterConfig(), adapter_name="layer")


def test_second_layer_on_the_same_attention_is_refused(tiny_blip):
    model = get_peft_model(tiny_blip, PAdapterConfig()).base_model.model
    with pytest.warns(UserWarning, match="second time"):
        model = get_peft_model(model, BottleneckConfig(), adapter_name="vanilla").base_model.model
    with (
        pytest.warns(UserWarning, match="second time"),
        pytest.raises(UserError, match=r"already carries a p-adapter.*add_adapter"),
    ):
        get_peft_model(model, PAdapterConfig(), adapter_name="other")


@pytest.mark.parametrize("outer", [BottleneckConfig(), LoraConfig(target_modules=r".*layer.*output\.dense")])
def test_unloading_what_stands_on_top_takes_the_p_adapter_along(tiny_blip, fresh_blip, outer):
    batch = {"pixel_values": torch.randn(1, 3, 32, 32), "input_ids": torch.randint(3, 40, (1, 5))}
    model = get_peft_model(tiny_blip, PAdapterConfig(form="bottleneck", init_weights=False)).base_model.model
    with pytest.warns(UserWarning, match="second time"):
        both = get_peft_model(model, outer, adapter_name="outer").eval()
    with torch.no_grad():
        base = fresh_blip()(**batch).logits
        assert (both(**batch).logits - base).abs().max() > 1e-2
        assert torch.equal(both.unload()(**batch).logits, base)


def test_under_accelerate_hooks(tiny_blip):
    """Device hooks keep the bound forward of the class a module had; the adapter must run all the same."""
    for module in tiny_blip.modules():
        if type(module).__name__ == "BlipTextSelfAttention":
            add_hook_to_module(module, AlignDevicesHook("cpu"))
    batch = {"pixel_values": torch.randn(1, 3, 32, 32), "input_ids": torch.randint(3, 40, (1, 5))}
    with torch.no_grad():
        before = tiny_blip(**batch).logits
        model = get_peft_model(tiny_blip, PAdapterConfig()).eval()
        assert (model(**batch).logits - before).abs().max() > 1e-2
        assert torch.equal(model.unload()(**batch).logits, before)


@pytest.mark.slow  # tests/architectures/test_fresh_process.py asks the same of every shim, in one process
def test_fresh_process(tiny_blip, tmp_path):
    batch = {"pixel_values": torch.randn(1, 3, 32, 32), "input_ids": torch.randint(3, 40, (1, 5))}
    tiny_blip.save_pretrained(tmp_path / "base")
    model = get_peft_model(tiny_blip, PAdapterConfig(form="bottleneck", init_weights=False)).eval()
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        torch.save((batch, model(**batch).logits), tmp_path / "expected.pt")
    code = f"""
import torch, padapter
from peft import PeftModel
from transformers import BlipForConditionalGeneration
batch, expected = torch.load({str(tmp_path / "expected.pt")!r})
model = BlipForConditionalGeneration.from_pretrained({str(tmp_path / "base")!r})
model = PeftModel.from_pretrained(model, {str(tmp_path / "adapter")!r}, adapter_name="elsewhere").eval()
torch.testing.assert_close(model(**batch).logits, expected, atol=1e-6, rtol=1e-6)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_adapter_added_in_evaluation_mode_does_not_train(tiny_blip):
    model = get_peft_model(tiny_blip, BottleneckConfig(location="attention"), "a").eval()
    model.add_adapter("b", BottleneckConfig(location="feedforward"))
    assert not any(module.training for module in model.modules())
