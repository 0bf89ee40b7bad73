"""Base models whose weights accelerate keeps elsewhere between calls."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from peft import get_peft_model
from test_every_architecture import CONFIGS, adapted, base, outputs
from tiny_models import MODELS

from padapter.tuners.base_layer import modules_of

CPU = torch.device("cpu")
OFFLOADS = {
    "cpu": lambda model, folder: cpu_offload(model, execution_device=CPU),
    "disk": lambda model, folder: disk_offload(model, folder, execution_device=CPU),
    "device map": lambda model, folder: dispatch_model(model, {"": "cpu"}),
}
every_offload = pytest.mark.parametrize("offload", sorted(OFFLOADS))
every_config = pytest.mark.parametrize("config", sorted(CONFIGS))


def gradients(model, inputs):
    outputs(model, inputs).square().mean().backward()
    return {key: p.grad for key, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["llama", "blip", "qwen2-vl"])
@every_config
@every_offload
@pytest.mark.in_turn("offload")
def test_an_offloaded_base_model_trains_its_adapter_as_any_other(name, config, offload, tmp_path):
    plain, inputs = adapted(name, config, where="all"), MODELS[name].inputs(2)
    model = OFFLOADS[offload](base(name), tmp_path)
    model = get_peft_model(model, CONFIGS[config](init_weights=False, where="all")).eval()
    adapter = {key: value for key, value in plain.state_dict().items() if f".{plain.base_model.prefix}" in key}
    assert not model.load_state_dict(adapter, strict=False).unexpected_keys
    for _ in range(2):  # weights are gone after a pass
        assert torch.equal(outputs(model, inputs), outputs(plain, inputs))
    expected = gradients(plain, inputs)
    for key, gradient in gradients(model, inputs).items():
        assert torch.equal(gradient, expected[key]), key


@every_config
@every_offload
def test_an_adapted_model_that_is_offloaded_gives_the_same_numbers(config, offload, tmp_path):
    plain, inputs = adapted("llama", config, where="all"), MODELS["llama"].inputs(2)
    model = OFFLOADS[offload](copy.deepcopy(plain), tmp_path)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(outputs(model, inputs), outputs(plain, inputs))


def test_the_factor_of_an_offloaded_weight_is_computed_once():
    model = get_peft_model(OFFLOADS["cpu"](base("llama"), None), CONFIGS["projected"](where="all")).eval()
    layer = next(modules_of(model))
    found = []
    for _ in range(2):
        outputs(model, MODELS["llama"].inputs(2))
        found.append(layer.metric_factor(4))
    assert found[0] is found[1]
    assert layer.get_base_layer().weight.device.type == "meta"
