"""Adapters on models that bitsandbytes has quantised to 8 or 4 bits, loaded as transformers loads them, on the CPU."""

from __future__ import annotations

import copy
import logging
from functools import cache

import bitsandbytes.functional
import pytest
import torch
import transformers as tf
from bitsandbytes.functional import _convert_weight_packed_for_cpu, dequantize_4bit
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from test_every_architecture import shake
from tiny_models import IMAGE_TOKEN, MODELS
from torch import nn

from padapter.architectures import find_sites
from padapter.errors import UserError
from padapter.functional import metric_factor
from padapter.tuners import BottleneckConfig, PAdapterConfig
from padapter.tuners.base_layer import modules_of
from padapter.tuners.p_adapter import layer as p_adapter_layer
from padapter.tuners.weights import projection_weight

CONFIGS = {
    "projected": PAdapterConfig,
    "bottleneck form": lambda **options: PAdapterConfig(form="bottleneck", **options),
    "vanilla": BottleneckConfig,
    "parallel": lambda **options: BottleneckConfig(mode="parallel", **options),
}
BITS = {
    # Without a threshold, for it looks for large numbers in the whole batch, and a row would depend on the others.
    "8 bits": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
    "4 bits": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "4 bits twice": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
#: Activations are rounded to 8 bits, or on some processors to bfloat16, and a last digit decides which way.
TOLERANCE = {"atol": 0.3, "rtol": 0.1}
# What bitsandbytes packs for some processors must have widths that its blocks of 64 divide.
_SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "initializer_range": 0.2,
}  # fmt: skip
_TEXT = {**_SIZES, "vocab_size": 99, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

every_model = pytest.mark.parametrize("name", ["llama", "llava"])
every_config = pytest.mark.parametrize("config", sorted(CONFIGS))
every_width = pytest.mark.parametrize("bits", ["8 bits", "4 bits"])
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def tiny(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "llama":
        return tf.LlamaForCausalLM(tf.LlamaConfig(**_TEXT))
    vision = tf.CLIPVisionConfig(**_SIZES, image_size=16, patch_size=8)
    text_config = tf.LlamaConfig(**_TEXT)
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(
            vision_config=vision, text_config=text_config, image_token_index=IMAGE_TOKEN, vision_feature_layer=-1
        )
    )


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """Loads a model anew, quantised."""
    # It says of each call that 32-bit inputs are rounded.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

    @cache
    def saved(name):
        folder = tmp_path_factory.mktemp(name)
        tiny(name).save_pretrained(folder)
        return folder

    def load(name, bits, **options):
        cls = {"llama": tf.LlamaForCausalLM, "llava": tf.LlavaForConditionalGeneration}[name]
        config = tf.BitsAndBytesConfig(**BITS[bits])
        return cls.from_pretrained(saved(name), quantization_config=config, device_map="cpu", **options).eval()

    yield load
    logging.getLogger("bitsandbytes").setLevel(logging.NOTSET)


def adapted(base, config, **options):
    torch.manual_seed(1)
    model = get_peft_model(base, CONFIGS[config](where="all", init_weights=False, activation="gelu", **options))
    shake(model)
    return model.eval()


def logits(model, name):
    return model(**MODELS[name].inputs(2)).logits


def what_it_computes_with(linear: nn.Module) -> torch.Tensor:
    """Weight (out, in) of a Linear, read off its answers to unit vectors, with no word of how it is kept."""
    with torch.no_grad():
        unit = torch.eye(linear.in_features)
        zero = linear(torch.zeros_like(unit))
        return (linear(unit) - zero).T


@every_model
@pytest.mark.parametrize("bits", sorted(BITS))
@pytest.mark.parametrize("called", [False, True], ids=["fresh", "called"])
@pytest.mark.in_turn("called")
def test_the_metric_is_that_of_the_dequantised_projection(name, bits, called, quantised):
    model = quantised(name, bits)
    if called:  # the scales of 8 bits move elsewhere with the first call
        logits(model, name)
    model = get_peft_model(model, PAdapterConfig(where="all")).eval()
    originals = dict(tiny(name).named_modules())
    layers = {key: module for key, module in model.base_model.model.named_modules() if module in set(modules_of(model))}
    assert len(layers) == (2 if name == "llama" else 4)
    for key, layer in layers.items():
        projection = layer.get_base_layer()
        assert type(projection).__name__ == ("Linear8bitLt" if bits == "8 bits" else "Linear4bit")
        parameter = projection.weight
        factor = layer.metric_factor(4)
        assert projection.weight is parameter, "reading a weight must leave the model alone"
        weight = what_it_computes_with(projection)
        heads = weight.view(64, 4, 16).transpose(0, 1)  # (H, d, dh)
        torch.testing.assert_close(factor @ factor.mT, heads.mT @ heads, atol=2e-2, rtol=1e-2)
        torch.testing.assert_close(factor, metric_factor(projection_weight(projection), 4))
        error = (projection_weight(projection) - originals[key].weight).abs().max()
        assert 0 < error < (0.005 if bits == "8 bits" else 0.15)


@every_model
@every_width
@every_config
@pytest.mark.in_turn("name")
def test_forward_disabling_and_saving(name, bits, config, quantised, tmp_path):
    base = quantised(name, bits)
    with torch.no_grad():
        expected = logits(base, name)
        model = adapted(base, config)
        trained = [p for p in model.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {torch.float32}
        found = logits(model, name)
        assert found.isfinite().all()
        assert (found - expected).abs().max() > 0.1
        with model.disable_adapter():
            assert torch.equal(logits(model, name), expected)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(quantised(name, bits), tmp_path, adapter_name="other").eval()
        assert torch.equal(logits(again, name), found)
        assert torch.equal(logits(model.unload(), name), expected)


@every_width
@pytest.mark.parametrize("config", ["projected", "bottleneck form"])
def test_an_adapter_before_any_other_call(bits, config, quantised):
    """The weight is read before the quantised Linear has been called once."""
    with torch.no_grad():
        found = logits(adapted(quantised("llama", bits), config), "llama")
        base = quantised("llama", bits)
        logits(base, "llama")
        torch.testing.assert_close(found, logits(adapted(base, config), "llama"), **TOLERANCE)


def test_the_metric_is_computed_once(quantised, monkeypatch):
    calls = []
    monkeypatch.setattr(p_adapter_layer, "metric_factor", lambda *args: calls.append(1) or metric_factor(*args))
    for bits in ("8 bits", "4 bits"):
        base = quantised("llama", bits)
        logits(base, "llama")
        model = adapted(base, "projected")
        calls.clear()
        with torch.no_grad():
            logits(model, "llama")
            logits(model, "llama")
        assert len(calls) == 2  # layers


@every_model
@every_width
@every_config
@pytest.mark.in_turn("name", start=1)
def test_token_by_token_with_the_cache_equals_all_at_once(name, bits, config, quantised):
    """With given tokens: of two near ones, rounding to 8 bits may prefer either."""
    model = adapted(quantised(name, bits), config)
    inputs = MODELS[name].inputs(2)
    words = torch.randint(3, 80, (2, 6), generator=torch.Generator().manual_seed(5))
    ids = torch.cat([inputs["input_ids"], words], dim=1)
    with torch.no_grad():
        expected = model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
        step = model(**inputs, use_cache=True)
        found = [step.logits]
        for word in words.split(1, dim=1):
            step = model(input_ids=word, past_key_values=step.past_key_values, use_cache=True)
            found.append(step.logits)
        again = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert again.shape[1] > inputs["input_ids"].shape[1]
    difference = (torch.cat(found, dim=1) - expected).abs()
    assert difference.mean() < 0.03 * expected.std()


@every_model
@every_width
@every_config
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.in_turn("name", "checkpointing")
def test_training(name, bits, config, checkpointing, quantised):
    base = prepare_model_for_kbit_training(quantised(name, bits), use_gradient_checkpointing=checkpointing)
    model = adapted(base, config).train()
    assert base.is_activation_checkpointing == checkpointing
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert all(model.base_model.prefix in key for key in parameters)
    optimizer = torch.optim.AdamW(parameters.values(), lr=5e-3)
    inputs = MODELS[name].inputs(2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        for key, p in parameters.items():
            assert p.grad is not None, key
            assert p.grad.isfinite().all(), key
            assert p.grad.any(), key
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


@every_width
@every_config
def test_a_base_in_bfloat16(bits, config, quantised):
    model = adapted(quantised("llama", bits, dtype=torch.bfloat16), config).train()
    found = logits(model, "llama")
    assert found.dtype == torch.bfloat16
    found.float().square().mean().backward()
    for key, p in model.named_parameters():
        if p.requires_grad:
            assert p.dtype == torch.float32, key
            assert p.grad.isfinite().all(), key


@pytest.mark.parametrize("bits", ["4 bits", "4 bits twice"])
def test_codes_that_are_packed_for_a_processor_are_read_too(bits, quantised):
    """Where the processor has AVX512-BF16, bitsandbytes reorders a weight at its first call."""
    linear = quantised("llama", bits).model.layers[0].mlp.up_proj
    before = dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    torch.testing.assert_close(projection_weight(linear), before)
    codes, state = _convert_weight_packed_for_cpu(linear.weight.data, copy.deepcopy(linear.weight.quant_state))
    linear.weight.data, linear.weight.quant_state = codes, state
    for _ in range(2):  # reading leaves it as it is
        # Its scales are bfloat16 then.
        torch.testing.assert_close(projection_weight(linear), before, atol=1e-6, rtol=2**-7)
        assert linear.weight.quant_state is state
        assert state.packing_format_for_cpu


@pytest.mark.parametrize("bits", ["4 bits", "4 bits twice"])
def test_a_release_that_packs_no_codes_is_enough_for_those_that_are_not(bits, quantised, monkeypatch):
    linear = quantised("llama", bits).model.layers[0].self_attn.o_proj
    expected = dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    monkeypatch.delattr(bitsandbytes.functional, "_convert_weight_packed_for_cpu_inverse")
    assert torch.equal(projection_weight(linear), expected)


class OtherLinear(nn.Linear):
    """A Linear that keeps its weight in a way nobody has told padapter of."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = nn.Parameter((linear.weight.detach() * 100).to(dtype), requires_grad=False)

    def forward(self, x):
        return x @ (self.weight.to(x.dtype) / 100).T


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_an_unknown_quantisation_is_refused_where_the_weight_is_needed(dtype):
    model = tiny("llama").requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.o_proj = OtherLinear(layer.self_attn.o_proj, dtype)
    for form in ("projected", "bottleneck"):
        with pytest.raises(UserError, match=rf"'model.layers.0.self_attn.o_proj'.*OtherLinear holds.*{dtype}.*bitsand"):
            get_peft_model(model, PAdapterConfig(form=form))
    assert len(find_sites(model)) == 4
    with torch.no_grad():
        assert logits(adapted(model, "vanilla"), "llama").isfinite().all()


def test_a_projection_without_a_weight_is_refused():
    model = tiny("llama")
    del model.model.layers[0].self_attn.o_proj.weight
    with pytest.raises(UserError, match=r"'model.layers.0.self_attn.o_proj'.*Linear has no `weight`"):
        get_peft_model(model, PAdapterConfig())


def test_a_weight_that_becomes_unreadable_later_is_refused_when_the_model_is_called():
    model = get_peft_model(tiny("llama"), PAdapterConfig()).eval()
    projection = model.base_model.model.model.layers[0].self_attn.o_proj.get_base_layer()
    projection.weight = nn.Parameter(projection.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(UserError, match=r"output projection.*Linear holds its weight as torch.int8"):
        logits(model, "llama")
