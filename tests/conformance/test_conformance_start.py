"""What a freshly added adapter is: nothing, or what its form promises; and exactly these parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model

from padapter.tuners import TUNERS

D, FFN_SITES, ATTENTION_SITES, HEADS = 32, 2, 4, 4


def bottleneck(width: int, reads: int = D) -> int:
    return reads * width + width + width * D + D


def p_adapter_count(config) -> int:
    width = config.r or D // (config.reduction_factor or 8)
    per_site = bottleneck(int(width))
    if config.form == "bottleneck" and config.gate:
        per_site += D * width + width
    if config.message_passing == "pgnn":
        per_site += (config.learn_p + config.learn_mu) * (HEADS if config.per_head else 1)
    if config.message_passing == "gcnii":
        per_site += ((D if config.form == "projected" else int(width)) // HEADS) ** 2 * HEADS
    feed_forward = config.ffn_adapter or (config.ffn_adapter is None and config.form == "bottleneck")
    return int(ATTENTION_SITES * per_site + FFN_SITES * feed_forward * bottleneck(4))


def bottleneck_count(config) -> int:
    sites = {"attention": ATTENTION_SITES, "feedforward": FFN_SITES, "both": ATTENTION_SITES + FFN_SITES}
    per_site = bottleneck(config.r or 4) + (config.scaling == "learned")
    return sites[config.location] * per_site


FORMULAS = {"p_adapter": p_adapter_count, "bottleneck": bottleneck_count}


def test_every_tuner_has_variants_and_a_formula():
    assert set(FORMULAS) == set(TUNERS)
    assert all(config.variants() for config in TUNERS.values())


def test_start_is_the_base_model_where_promised(case, tiny_blip, batch, helpers):
    before = helpers.logits(tiny_blip, batch)
    after = helpers.logits(get_peft_model(tiny_blip, case.config()).eval(), batch)
    if case.identity_at_start:
        assert torch.equal(before, after)
    elif case.config().message_passing == "gcn":
        torch.testing.assert_close(before, after, atol=1e-4, rtol=0)
    else:
        assert (before - after).abs().max() > 1e-2


def test_no_initial_weights_is_not_the_base_model(case, tiny_blip, batch, helpers):
    before = helpers.logits(tiny_blip, batch)
    after = helpers.logits(get_peft_model(tiny_blip, case.config(init_weights=False)).eval(), batch)
    assert (before - after).abs().max() > 1e-2


def test_disabled_is_the_base_model(adapted, fresh_blip, batch, helpers):
    before = helpers.logits(fresh_blip(), batch)
    assert (helpers.logits(adapted, batch) - before).abs().max() > 1e-2
    with adapted.disable_adapter():
        assert torch.equal(helpers.logits(adapted, batch), before)
    assert (helpers.logits(adapted, batch) - before).abs().max() > 1e-2


def test_trainable_parameters(case, tiny_blip):
    base = {name for name, _ in tiny_blip.named_parameters()}
    model = get_peft_model(tiny_blip, case.config())
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all(f".{case.prefix}" in name and ".default" in name for name in trainable)
    assert model.get_nb_trainable_parameters()[0] == FORMULAS[case.tuner](case.config())
    frozen = {
        name.removeprefix("base_model.model.").replace(".base_layer", "")
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }
    assert frozen == base


def test_every_parameter_gets_a_gradient(adapted, batch):
    adapted.train()
    adapted(**batch, labels=batch["input_ids"]).loss.backward()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def test_training_lowers_the_loss(case, tiny_blip, batch):
    model = get_peft_model(tiny_blip, case.config(dropout=0.1)).train()
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=3e-2)
    losses = []
    for _ in range(12):
        loss = model(**batch, labels=batch["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_deepcopy_is_independent(adapted, batch, helpers):
    before = helpers.logits(adapted, batch)
    twin = copy.deepcopy(adapted)
    assert torch.equal(helpers.logits(twin, batch), before)
    helpers.disturb(twin, seed=9)
    assert (helpers.logits(twin, batch) - before).abs().max() > 1e-3
    assert torch.equal(helpers.logits(adapted, batch), before)
    twin.unload()
    assert torch.equal(helpers.logits(adapted, batch), before)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.in_turn("autocast")
def test_bfloat16(case, tiny_blip, batch, helpers, autocast):
    tiny_blip.to(torch.bfloat16)
    batch = batch | {"pixel_values": batch["pixel_values"].bfloat16()}
    before = helpers.logits(tiny_blip, batch)
    model = get_peft_model(tiny_blip, case.config(), autocast_adapter_dtype=autocast).eval()
    if case.identity_at_start:
        assert torch.equal(helpers.logits(model, batch), before)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exponent = name.split(".")[-2].removeprefix(case.prefix) in ("p", "mu")
            assert parameter.dtype == (torch.float32 if autocast or exponent else torch.bfloat16), name
    helpers.disturb(model)
    after = helpers.logits(model, batch)
    assert after.dtype == before.dtype == torch.bfloat16
    assert torch.isfinite(after).all()
    assert (after - before).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(helpers.logits(model, batch), before)
