"""What must hold for every architecture that has the property, on tiny random models."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_models import IMAGE_TOKEN, MODELS, Inputs, build
from torch import nn
from transformers import GenerationConfig

from padapter.architectures import AttentionSite, find_sites
from padapter.tuners import BottleneckConfig, PAdapterConfig
from padapter.tuners.base_layer import modules_of

CONFIGS = {
    "projected": PAdapterConfig,
    "bottleneck form": lambda **options: PAdapterConfig(form="bottleneck", **options),
    "vanilla": BottleneckConfig,
}
everywhere = pytest.mark.parametrize("name", sorted(MODELS))
every_config = pytest.mark.parametrize("config", sorted(CONFIGS))
GENERATING = sorted(name for name, tiny in MODELS.items() if tiny.generates)


@cache
def _base(name: str) -> nn.Module:
    return build(name)


def base(name: str) -> nn.Module:
    return copy.deepcopy(_base(name))


def adapted(name: str, config: str, trained: bool = True, **options: Any) -> PeftModel:
    """A model with an adapter whose weights are all random, so that it changes something."""
    model = get_peft_model(base(name), CONFIGS[config](init_weights=not trained, **options)).eval()
    if trained:
        shake(model)
    return model


def shake(model: nn.Module, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.3 * torch.rand(parameter.shape, generator=generator))


def exactly(name: str, model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs, dict[str, float]]:
    """Model and inputs in float64, and the tolerance that goes with it."""
    if name == "kosmos-2":  # its causal mask overflows in float64
        return model, inputs, {"atol": 1e-3, "rtol": 1e-2}
    inputs = {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}
    return model.double(), inputs, {"atol": 1e-7, "rtol": 1e-6}


def outputs(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """What the model computes, as one tensor (B, N, width)."""
    found = model(**inputs)
    if hasattr(found, "logits"):
        return found.logits
    if hasattr(found, "text_embeds"):
        return torch.cat([found.text_embeds, found.image_embeds], dim=-1).unsqueeze(1)
    return found.last_hidden_state


def generate(model: nn.Module, inputs: Inputs, **options: Any) -> Any:
    """Sequences and logits of a generation that never utters an image token."""
    prompt = {key: value for key, value in inputs.items() if key != "decoder_input_ids"}
    config = GenerationConfig(
        max_new_tokens=5, do_sample=False, pad_token_id=0, bos_token_id=1, eos_token_id=98, decoder_start_token_id=1,
        suppress_tokens=[IMAGE_TOKEN, 91, 92, 93], return_dict_in_generate=True, output_logits=True, **options,
    )  # fmt: skip
    return model.generate(**prompt, generation_config=config)


@everywhere
@every_config
@pytest.mark.in_turn("config", start=0)
def test_default_targets_are_the_decoder_and_the_fraction_is_small(name, config):
    model = adapted(name, config)
    sites = find_sites(model.base_model.model)
    generating = {key for key, site in sites.items() if site.part == "decoder"}
    kinds = (AttentionSite,) if config == "projected" else tuple({type(site) for site in sites.values()})
    expected = {key for key in generating or set(sites) if isinstance(sites[key], kinds)}
    found = {key for key, module in model.base_model.model.named_modules() if module in set(modules_of(model))}
    assert found == expected
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all(f".{model.base_model.prefix}" in key for key in trainable)


@everywhere
@every_config
@pytest.mark.in_turn("config", start=1)
def test_every_adapter_parameter_gets_a_gradient_and_nothing_else_does(name, config):
    # A smooth activation: with ReLU a bottleneck of four can be dead for every input.
    model = adapted(name, config, where="all", activation="gelu").train()
    found = outputs(model, MODELS[name].inputs(2))
    (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), key
    without = [key for key, p in model.named_parameters() if p.requires_grad and not p.grad.any()]
    assert not without


@everywhere
@every_config
@pytest.mark.in_turn("config", start=2)
def test_the_start_and_disabling_give_the_base_model(name, config):
    inputs = MODELS[name].inputs(2)
    with torch.no_grad():
        # Frozen, as in an adapted model: attention kernels may differ otherwise, and with them the last digits.
        expected = outputs(base(name).requires_grad_(False), inputs)
        if config != "projected":
            assert torch.equal(outputs(adapted(name, config, trained=False, where="all"), inputs), expected)
        model = adapted(name, config, where="all")
        assert not torch.allclose(outputs(model, inputs), expected, atol=1e-4)
        with model.disable_adapter():
            assert torch.equal(outputs(model, inputs), expected)
        assert torch.equal(outputs(model.unload(), inputs), expected)


@everywhere
@every_config
@pytest.mark.in_turn("config", start=0)
def test_saved_and_loaded_under_another_name(name, config, tmp_path):
    inputs = MODELS[name].inputs(2)
    model = adapted(name, config, where="all")
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base(name), tmp_path, adapter_name="other").eval()
    with torch.no_grad():
        assert torch.equal(outputs(again, inputs), outputs(model, inputs))


@everywhere
@pytest.mark.parametrize("config", ["projected", "bottleneck form"])
@pytest.mark.in_turn("config")
def test_eager_and_sdpa_agree(name, config):
    models = []
    for implementation in ("eager", "sdpa"):
        model = base(name)
        try:
            model.set_attn_implementation(implementation)
        except ValueError:
            pytest.skip(f"{name} has no {implementation} attention")
        model = get_peft_model(model, CONFIGS[config](init_weights=False, where="all")).eval()
        shake(model)
        models.append(model)
    models[1].load_state_dict(models[0].state_dict())
    with torch.no_grad():
        found = []
        for model in models:
            model, inputs, _ = exactly(name, model, MODELS[name].inputs(2))
            found.append(outputs(model, inputs))
    # Most models take the softmax of eager attention in float32, whatever their precision.
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("name", GENERATING)
@pytest.mark.parametrize("config", ["projected", "bottleneck form"])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.in_turn("config", "beams")
def test_generation_with_the_cache_equals_without(name, config, beams):
    model, inputs, tolerance = exactly(name, adapted(name, config), MODELS[name].inputs(2))
    cached, plain = (generate(model, inputs, num_beams=beams, use_cache=use) for use in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), **tolerance)


@pytest.mark.parametrize("name", GENERATING)
@every_config
@pytest.mark.in_turn("config", start=1)
def test_no_position_sees_later_ones(name, config):
    model, inputs = adapted(name, config), MODELS[name].inputs(2)
    if name == "paligemma":  # attends to its whole prompt in both directions, by design
        inputs = {**inputs, "token_type_ids": torch.ones_like(inputs["input_ids"])}
    key = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    changed = {**inputs, key: inputs[key].clone()}
    changed[key][:, -2:] = 5
    assert not torch.equal(changed[key], inputs[key])
    with torch.no_grad():
        one, other = outputs(model, inputs), outputs(model, changed)
    torch.testing.assert_close(one[:, :-2], other[:, :-2], atol=1e-4, rtol=1e-3)
