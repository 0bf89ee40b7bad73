"""Every tuner of the installed PEFT is a method: it trains, is saved and loaded, or says why not."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from tiny_blip import make_backbone
from toy_task import assert_same, outputs, overfit, toy_batch

from padapter.backbones import load_backbone
from padapter.errors import UserError
from padapter.methods import METHODS, get_method, method_of, peft_methods, trainable_parameters
from padapter.methods.any_peft import SPELLINGS
from padapter.options import split_method

NEEDS = {"c3a": {"block_size": "32"}, "road": {"group_size": "32"}, "vblora": {"vector_length": "32"}}
"""Widths of `shapes-blip` (160) that PEFT's defaults, made for large models, do not divide."""

REFUSED = {name for name, method in peft_methods().items() if method.special.refused}
WORKING = sorted(peft_methods().keys() - REFUSED)
LORA_FORMS = {
    "lora:init_lora_weights=pissa": 16,
    "lora:init_lora_weights=olora,r=4": 16,
    "lora:use_dora=true": 24,
    "lora:use_rslora=yes,init_lora_weights=gaussian": 16,
    "lora:lora_bias=true": 24,
}
TABLE = Path(__file__).parents[2] / "docs" / "methods.md"


@pytest.fixture(scope="module")
def shapes_blip():
    return load_backbone("shapes-blip")


@pytest.fixture(scope="module")
def two_layers(shapes_blip):
    """The built-in model with its two lowest layers: enough for a tuner to differ between them."""
    backbone = copy.deepcopy(shapes_blip)
    text, vision = backbone.base_model.text_decoder.bert.encoder, backbone.base_model.vision_model.encoder
    text.layer, vision.layers = text.layer[:2], vision.layers[:2]
    for config in (backbone.base_model.config, text.config, vision.config):
        for part in (config, getattr(config, "text_config", config), getattr(config, "vision_config", config)):
            if hasattr(part, "num_hidden_layers"):
                part.num_hidden_layers = 2
    return backbone


def adapted(backbone, spelled):
    name, values = split_method(spelled)
    method = get_method(name)
    torch.manual_seed(1)
    fresh = copy.deepcopy(backbone)
    method.apply(fresh, method.parse({**NEEDS.get(name, {}), **values}))
    return method, fresh


@pytest.mark.parametrize("spelled", [*WORKING, *LORA_FORMS])
def test_it_trains_is_saved_and_loaded(spelled, two_layers, tmp_path):
    method, backbone = adapted(two_layers, spelled)
    trained = {name: value.detach().clone() for name, value in backbone.model.named_parameters() if value.requires_grad}
    frozen = {name: value.detach().clone() for name, value in backbone.model.named_parameters() if name not in trained}
    assert 0 < trainable_parameters(backbone.model)[0] < 0.2 * trainable_parameters(backbone.model)[1]
    if spelled in LORA_FORMS:
        assert len(trained) == LORA_FORMS[spelled]
    backbone.training_module("sequence")(**toy_batch(backbone))["loss"].backward()
    assert [n for n, value in backbone.model.named_parameters() if value.requires_grad and value.grad is None] == []
    backbone.model.zero_grad()
    backbone.model.eval()
    assert all(math.isfinite(loss) for loss in overfit(backbone, steps=3, rate=1e-2))
    now = dict(backbone.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    assert any(not torch.equal(now[name], value) for name, value in trained.items())

    expected = outputs(backbone)
    method.save(backbone, tmp_path)
    assert method_of(tmp_path) is method
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "shapes-blip"
    torch.manual_seed(99)
    fresh = copy.deepcopy(two_layers)
    method.load(fresh, tmp_path)
    fresh.model.eval()
    assert_same(outputs(fresh), expected)
    again = copy.deepcopy(two_layers)
    method.load(again, tmp_path, trainable=True)
    assert {name for name, value in again.model.named_parameters() if value.requires_grad} == trained.keys()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_trained_says_so_at_once(name):
    method, backbone = peft_methods()[name], make_backbone()
    with pytest.raises(UserError, match=rf"method '{name}' cannot be trained here: it \w+"):
        method.apply(backbone, method.parse({}))
    assert backbone.model is backbone.base_model


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_a_size_that_does_not_divide_the_width_is_refused_in_pefts_words(name, shapes_blip):
    method = get_method(name)
    with pytest.raises(UserError, match=rf"method '{name}' cannot be applied to model 'shapes-blip': .*(factor|divis)"):
        method.apply(copy.deepcopy(shapes_blip), method.parse({}))


def test_every_tuner_of_peft_that_changes_modules_is_there():
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    tuners = {
        str(getattr(key, "value", key)) for key, cls in PEFT_TYPE_TO_TUNER_MAPPING.items() if issubclass(cls, BaseTuner)
    }
    here = {
        method.peft_type for method in (*METHODS.values(), *peft_methods().values()) if hasattr(method, "peft_type")
    }
    assert tuners <= here
    assert not peft_methods().keys() & METHODS.keys()


def test_options_reach_the_configuration():
    backbone = make_backbone()
    method = get_method("lora")
    options = method.parse(
        {
            "r": "2",
            "lora_alpha": "5",
            "bias": "lora_only",
            "layers_to_transform": "1",
            "exclude_modules": "crossattention.self.query, crossattention.self.value",
            "rank_pattern": "{value: 3}",
            "velora_config": {},
        }
    )
    assert vars(options).keys() >= {"bias", "rank_pattern"}
    assert "use_dora" not in vars(options)
    config = method.config(backbone, options)
    assert (config.r, config.lora_alpha, config.bias) == (2, 5, "lora_only")
    assert config.exclude_modules == {"crossattention.self.query", "crossattention.self.value"}
    assert config.rank_pattern == {"value": 3}
    assert type(config.velora_config).__name__ == "VeloraConfig"


@pytest.mark.parametrize("name", ["lora", "vera"])
def test_layers_are_chosen_by_their_numbers(name):
    _, backbone = adapted(make_backbone(), f"{name}:layers_to_transform=1")
    trained = [key for key, value in backbone.model.named_parameters() if value.requires_grad]
    assert trained
    assert all(".layer.1." in key for key in trained)
    with pytest.raises(UserError, match=r"no target module lies in layers_to_transform=7"):
        adapted(make_backbone(), f"{name}:layers_to_transform=7,layers_pattern=layer")


def test_default_targets(shapes_blip):
    stem = "text_decoder.bert"
    _, ia3 = adapted(shapes_blip, "ia3")
    sites = {name.rpartition(".ia3_l")[0] for name, _ in ia3.base_model.named_modules() if name.endswith(".ia3_l")}
    assert len(sites) == 16
    assert {name.rpartition(".")[2] for name in sites} == {"query", "value"}
    assert all(name.startswith(stem) for name in sites)
    _, norms = adapted(shapes_blip, "ln-tuning:part=both")
    trained = {name for name, value in norms.model.named_parameters() if value.requires_grad}
    assert any("vision_model" in name for name in trained)
    assert any("text_decoder" in name for name in trained)
    _, chosen = adapted(shapes_blip, "oft:oft_block_size=32,target_modules=key")
    names = [name for name, value in chosen.model.named_parameters() if value.requires_grad]
    assert names
    assert all(".key." in name for name in names)


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("lora:use_doar=1", r"method 'lora' has no option 'use_doar'\. Did you mean 'use_dora'\?"),
        ("lora:use_dora=perhaps", "option 'use_dora': 'perhaps' is not true or false"),
        ("lora:rank_pattern=3", "option 'rank_pattern': '3' is not none or a mapping"),
        ("lora:alpha=1,lora_alpha=2", "option 'alpha' is given twice"),
        ("lora:init_lora_weights=pissa_niter_4", "'pissa_niter_4' is not true or false or one of"),
        ("lora:init_lora_weights=eva", "init_lora_weights=eva needs a pass over the data"),
        ("lora:init_lora_weights=loftq", "init_lora_weights=loftq replaces the model's weights"),
        ("oft:r=8,oft_block_size=4", "method 'oft': PEFT refuses these options"),
        ("ia3:target_modules=nothing_like_this", "method 'ia3' cannot be applied to model .*nothing_like_this"),
        ("oftt", r"unknown method 'oftt'\. Did you mean 'oft'\? Known methods: p-adapter, .*; and of PEFT: adalora"),
    ],
)
def test_mistakes_are_explained(spelled, message):
    with pytest.raises(UserError, match=message):
        adapted(make_backbone(), spelled)


@pytest.mark.parametrize("name", sorted(SPELLINGS))
def test_other_spellings_lead_to_a_method_that_exists(name):
    with pytest.raises(UserError, match="it is asked for with --method"):
        get_method(name)
    method, values = split_method(SPELLINGS[name])
    get_method(method).parse(values)


def test_an_initialisation_that_rewrites_the_model_says_so_when_it_does_not_fit(tmp_path):
    method = get_method("lora")
    _, backbone = adapted(make_backbone(), "lora:init_lora_weights=pissa,r=4")
    method.save(backbone, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 8}))
    with pytest.raises(UserError, match=r"shapes differ.*Load the model again"):
        method.load(make_backbone(), tmp_path)


def test_the_document_says_of_every_tuner_whether_it_works():
    rows = [
        line.split("|")
        for line in TABLE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `") and "Config |" in line
    ]
    said = {row[1].strip().strip("`"): row[3].strip() for row in rows}
    assert said.keys() == peft_methods().keys()
    for name, method in peft_methods().items():
        if method.special.refused:
            assert said[name] == f"no: {method.special.refused}"
        else:
            needed = ",".join(f"{key}={value}" for key, value in NEEDS.get(name, {}).items())
            assert said[name] == (f"with `{name}:{needed}`" if needed else "yes")
