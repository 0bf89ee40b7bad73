"""Attention within a sliding window, and prompts padded at their left, under adapters as without them."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from peft import get_peft_model
from test_every_architecture import CONFIGS, GENERATING, base, exactly, generate, outputs, shake
from tiny_models import HEADS, IMAGE_TOKEN, KV_HEADS, LAYERS, MODELS, VOCABULARY, WIDTH, build, text

WINDOW = 4
LENGTH = 3 * WINDOW
_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "initializer_range": 0.2,
}  # fmt: skip


def _mistral(window):
    return tf.MistralForCausalLM(tf.MistralConfig(**_SIZES, sliding_window=window, head_dim=8))


def _qwen2(window):
    """Its first layer sees everything."""
    config = tf.Qwen2Config(**_SIZES, sliding_window=window, use_sliding_window=True, max_window_layers=1)
    return tf.Qwen2ForCausalLM(config)


def _gemma3(window):
    layers = ["sliding_attention", "full_attention"]
    config = tf.Gemma3TextConfig(**_SIZES, head_dim=8, sliding_window=window, layer_types=layers)
    return tf.Gemma3ForCausalLM(config)


WINDOWED = {"mistral": _mistral, "qwen2": _qwen2, "gemma3 text": _gemma3}
every_window = pytest.mark.parametrize("name", sorted(WINDOWED))
every_config = pytest.mark.parametrize("config", sorted(CONFIGS))


def windowed(name, config, window=WINDOW, implementation="sdpa"):
    torch.manual_seed(0)
    model = WINDOWED[name](window).eval()
    model.set_attn_implementation(implementation)
    if config is not None:
        model = get_peft_model(model, CONFIGS[config](init_weights=True)).eval()
        shake(model)
    return model.double()


def prompt(rows=2, length=LENGTH - 1):
    ids = text(rows, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@every_window
@every_config
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_generation_beyond_the_window(name, config, implementation):
    model = windowed(name, config, implementation=implementation)
    cached, plain = (generate(model, prompt(), use_cache=use, min_new_tokens=5) for use in (True, False))
    assert cached.sequences.shape[1] == LENGTH + 5
    assert torch.equal(cached.sequences, plain.sequences)
    # Eager attention takes its softmax in float32.
    tolerance = {"atol": 1e-7, "rtol": 1e-6} if implementation == "sdpa" else {"atol": 1e-4, "rtol": 1e-2}
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), **tolerance)


@every_window
@every_config
def test_eager_and_sdpa_see_the_same_window(name, config):
    with torch.no_grad():
        eager, sdpa = (outputs(windowed(name, config, WINDOW, kind), prompt()) for kind in ("eager", "sdpa"))
    torch.testing.assert_close(eager, sdpa, atol=1e-4, rtol=1e-2)


@every_window
@every_config
def test_the_window_is_a_window(name, config):
    """What the adapter computes depends on it, and on nothing outside of it."""
    with torch.no_grad():
        found, everything = (outputs(windowed(name, config, window), prompt()) for window in (WINDOW, 128))
        torch.testing.assert_close(found[:, :WINDOW], everything[:, :WINDOW])
        assert (found[:, WINDOW:] - everything[:, WINDOW:]).abs().max() > 1e-2
        if name != "mistral":  # the others have a layer that sees everything
            return
        inputs = prompt()
        changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][:, 0] = 7
        other = outputs(windowed(name, config), changed)
    reach = LAYERS * (WINDOW - 1)
    torch.testing.assert_close(found[:, reach + 1 :], other[:, reach + 1 :])
    assert (found[:, :reach] - other[:, :reach]).abs().max() > 1e-2


@every_config
def test_the_local_layers_of_gemma3_with_a_picture(config):
    model = get_peft_model(build("gemma3"), CONFIGS[config](where="all", init_weights=False))
    shake(model)
    model, inputs, tolerance = exactly("gemma3", model.eval(), MODELS["gemma3"].inputs(2))
    assert inputs["input_ids"].shape[1] > 2 * model.config.text_config.sliding_window
    cached, plain = (generate(model, inputs, use_cache=use) for use in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), **tolerance)


#: Models that read their prompt with the decoder that answers.
DECODERS = sorted(
    name
    for name in GENERATING
    if not base(name).config.is_encoder_decoder and "decoder_input_ids" not in MODELS[name].inputs(1)
)
#: For which padding changes the numbers of the base model itself: its places of the image are counted from the start.
SENSITIVE = {"kosmos-2"}


def left_padded(inputs, padding=3):
    padded = dict(inputs)
    per_token = {key for key, value in inputs.items() if value.shape[:2] == inputs["input_ids"].shape}
    for key in per_token:
        padded[key] = torch.cat([torch.zeros_like(inputs[key][:, :1])] * padding + [inputs[key]], dim=1)
    return padded


def difference(model, inputs, padded):
    """The greatest difference that padding makes to the logits of a generation."""
    with torch.no_grad():
        one, other = (torch.stack(generate(model, given, min_new_tokens=5).logits) for given in (inputs, padded))
    usable = [token for token in range(VOCABULARY) if token != IMAGE_TOKEN]
    assert one[..., usable].isfinite().all()
    return (one[..., usable] - other[..., usable]).abs().max().item()


@pytest.mark.parametrize("name", DECODERS)
@every_config
@pytest.mark.in_turn("config")
def test_left_padding_changes_nothing_where_it_changes_nothing_in_the_base_model(name, config):
    model, inputs, _ = exactly(name, base(name), MODELS[name].inputs(1))
    padded = left_padded(inputs)
    attended = {**padded, "attention_mask": torch.ones_like(padded["attention_mask"])}
    assert difference(model, inputs, attended) > 1e-3, "padding that is not masked must make a difference"
    holds = difference(model, inputs, padded) < 1e-7
    assert holds == (name not in SENSITIVE)
    if holds:
        model = get_peft_model(base(name), CONFIGS[config](where="all", init_weights=False)).eval()
        shake(model)
        assert difference(model.double(), inputs, padded) < 1e-7
