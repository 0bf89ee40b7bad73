from __future__ import annotations

import pytest
from tiny_blip import make_backbone
from toy_task import outputs, overfit

from padapter.backbones import load_backbone
from padapter.errors import UserError
from padapter.methods import METHODS, trainable_parameters


def lora_sites(**options):
    backbone = make_backbone()
    METHODS["lora"].apply(backbone, METHODS["lora"].parse(options))
    return sorted(
        name.removesuffix(".lora_A") for name, _ in backbone.base_model.named_modules() if name.endswith(".lora_A")
    )


def test_lora_adapts_query_and_value_of_the_text_decoder():
    stem = "text_decoder.bert.encoder.layer"
    expected = [
        f"{stem}.{layer}.{kind}.self.{name}"
        for layer in (0, 1)
        for kind in ("attention", "crossattention")
        for name in ("query", "value")
    ]
    assert lora_sites() == sorted(expected)


def test_lora_in_other_parts_and_places():
    image = [f"vision_model.encoder.layers.{layer}.self_attn.qkv" for layer in (0, 1)]
    assert lora_sites(part="image") == image
    assert lora_sites(part="both") == sorted([*lora_sites(), *image])
    assert lora_sites(part="image", target_modules="fc1, fc2") == [
        f"vision_model.encoder.layers.{layer}.mlp.{name}" for layer in (0, 1) for name in ("fc1", "fc2")
    ]
    assert lora_sites(target_modules=r".*layer\.1\.attention\.self\.key") == [
        "text_decoder.bert.encoder.layer.1.attention.self.key"
    ]


def test_lora_options_reach_peft():
    backbone = make_backbone()
    METHODS["lora"].apply(backbone, METHODS["lora"].parse({"r": "4", "dropout": "0.1"}))
    config = backbone.model.active_peft_config
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.1)
    assert trainable_parameters(backbone.model)[0] == 4 * (6 * (32 + 32) + 2 * (24 + 32))


def test_lora_in_the_image_tower_gets_gradients():
    backbone = make_backbone()
    METHODS["lora"].apply(backbone, METHODS["lora"].parse({"part": "image"}))
    overfit(backbone, steps=2)
    grads = [p.grad for p in backbone.model.parameters() if p.requires_grad]
    assert grads
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_full_can_leave_the_image_tower_alone():
    backbone = make_backbone()
    METHODS["full"].apply(backbone, METHODS["full"].parse({"freeze_image_tower": "yes"}))
    assert not any(p.requires_grad for p in backbone.model.vision_model.parameters())
    assert all(p.requires_grad for p in backbone.model.text_decoder.parameters())


def test_a_fully_tuned_model_is_a_model(tmp_path):
    backbone = make_backbone()
    METHODS["full"].apply(backbone, METHODS["full"].options())
    overfit(backbone, steps=3, rate=3e-3)
    METHODS["full"].save(backbone, tmp_path)
    again = outputs(load_backbone(str(tmp_path)))
    assert again[1:3] == outputs(backbone)[1:3]


def test_full_refuses_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        METHODS["full"].load(make_backbone(), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="has no model"):
        METHODS["full"].load(make_backbone(), tmp_path)
