from __future__ import annotations

import json

import pytest
from tiny_blip import make_model

from padapter.errors import UserError
from padapter.methods import METHODS, get_method, method_of, trainable_parameters


def test_the_five_methods():
    assert list(METHODS) == ["p-adapter", "adapter", "lora", "prefix", "full"]
    assert all(method.name == name for name, method in METHODS.items())
    assert get_method("p_adapter") is METHODS["p-adapter"]


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(
        UserError, match=r"unknown method 'qlora'\. Did you mean 'lora'\? Known methods: p-adapter, adapter, lora"
    ):
        get_method("qlora")


def test_a_folder_says_which_method_wrote_it(tmp_path):
    for peft_type, name in (("LORA", "lora"), ("PREFIX_TUNING", "prefix"), ("P_ADAPTER", "p-adapter")):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": peft_type}))
        assert method_of(tmp_path).name == name
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "CPT"}))
    with pytest.raises(
        UserError, match=r"of type CPT; padapter reads ADALORA, .*BOTTLENECK, .*LORA, .*PREFIX_TUNING, .*P_ADAPTER"
    ):
        method_of(tmp_path)


def test_a_folder_of_a_whole_model_or_of_nothing(tmp_path):
    with pytest.raises(UserError, match="is not an adapter"):
        method_of(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert method_of(tmp_path).name == "full"


def test_a_broken_adapter_config(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="not a PEFT adapter config"):
        method_of(tmp_path)


def test_trainable_parameters_counts_tied_weights_once():
    model = make_model()
    names = dict(model.named_parameters())
    total = sum(parameter.numel() for parameter in names.values())
    assert "text_decoder.cls.predictions.decoder.weight" not in names  # tied to the embeddings
    assert trainable_parameters(model) == (total, total)
    model.requires_grad_(False)
    names["text_decoder.cls.predictions.transform.dense.bias"].requires_grad_(True)
    assert trainable_parameters(model) == (32, total)
