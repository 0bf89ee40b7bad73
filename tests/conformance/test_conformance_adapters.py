"""Several adapters on one model: switching, stacking, deleting, mixing within a batch, and getting rid of them."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from padapter.errors import UserError
from padapter.tuners import mixed_batch


@pytest.fixture
def two(case, adapted, batch, helpers):
    """The adapted model with a second, different adapter, and the logits of each alone."""
    adapted.add_adapter("second", case.config(layers_to_transform=[1], activation="silu"))
    first = helpers.logits(adapted, batch)
    adapted.set_adapter("second")
    helpers.disturb(adapted, seed=5)
    return adapted, first, helpers.logits(adapted, batch)


def test_switching(two, batch, helpers):
    model, first, second = two
    assert (first - second).abs().max() > 1e-2
    model.set_adapter("default")
    assert torch.equal(helpers.logits(model, batch), first)
    assert all((".second" in n) != p.requires_grad for n, p in model.named_parameters() if "_down." in n)
    model.set_adapter("second")
    assert torch.equal(helpers.logits(model, batch), second)


def test_adding_does_not_train_the_new_one(case, adapted, batch):
    before = adapted.get_nb_trainable_parameters()[0]
    adapted.add_adapter("second", case.config())
    assert adapted.get_nb_trainable_parameters()[0] == before
    assert not any(p.requires_grad for n, p in adapted.named_parameters() if ".second" in n)
    adapted.set_requires_grad("second", True)
    assert adapted.get_nb_trainable_parameters()[0] == 2 * before


def test_stacking_adds_and_has_no_order(two, batch, helpers):
    model, first, second = two
    model.base_model.set_adapter(["default", "second"])
    both = helpers.logits(model, batch)
    assert min((both - first).abs().max(), (both - second).abs().max()) > 1e-3
    model.base_model.set_adapter(["second", "default"])
    torch.testing.assert_close(helpers.logits(model, batch), both, atol=1e-4, rtol=1e-4)


def test_deleting_one_leaves_the_other(two, batch, helpers):
    model, first, _ = two
    model.set_adapter("default")
    model.delete_adapter("second")
    assert not any("second" in name for name in model.state_dict())
    assert torch.equal(helpers.logits(model, batch), first)


def test_deleting_the_last_gives_the_base_model(adapted, fresh_blip, batch, helpers):
    adapted.delete_adapter("default")
    base = fresh_blip()
    assert torch.equal(helpers.logits(adapted.base_model.model, batch), helpers.logits(base, batch))
    assert all(
        type(module) is BlipTextSelfAttention
        for module in adapted.modules()
        if isinstance(module, BlipTextSelfAttention)
    )


def test_unloading_gives_the_base_model(case, two, fresh_blip, batch, helpers):
    base, model = fresh_blip(), two[0].unload()
    assert torch.equal(helpers.logits(model, batch), helpers.logits(base, batch))
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in base.named_modules()]
    assert list(model.state_dict()) == list(base.state_dict())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(key.startswith("_padapter") for module in model.modules() for key in module.__dict__)
    again = get_peft_model(model, case.config()).eval()
    assert helpers.logits(again, batch).isfinite().all()


def test_merging_is_refused(adapted, batch, helpers):
    before = helpers.logits(adapted, batch)
    with pytest.raises(UserError, match=r"cannot be merged.*unload"):
        adapted.merge_and_unload()
    with pytest.raises(UserError, match="cannot be merged"):
        adapted.merge_adapter()
    assert torch.equal(helpers.logits(adapted, batch), before)


def test_on_top_of_lora(case, tiny_blip, batch, helpers):
    lora = LoraConfig(r=2, target_modules=r".*layer\.\d+\.(attention|crossattention)\.(self\.query|output\.dense)")
    with_lora = get_peft_model(tiny_blip, lora).eval()
    helpers.disturb(with_lora)
    before = helpers.logits(with_lora, batch)
    model = get_peft_model(with_lora.base_model.model, case.config()).eval()
    if case.identity_at_start:
        assert torch.equal(helpers.logits(model, batch), before)
    helpers.disturb(model)
    assert (helpers.logits(model, batch) - before).abs().max() > 1e-2
    with model.disable_adapter():
        assert helpers.logits(model, batch).isfinite().all()


def test_mixed_batch_equals_one_by_one(two, fresh_blip, batch, helpers):
    model = two[0]
    names = ["default", "__base__", "second", "default"]
    rows = {key: torch.cat([value, value.flip(0)]) for key, value in batch.items()}
    mixed = helpers.logits(model, rows, adapter_names=names)
    base = fresh_blip()
    for i, name in enumerate(names):
        row = {key: value[i : i + 1] for key, value in rows.items()}
        if name != "__base__":
            model.set_adapter(name)
        alone = helpers.logits(base if name == "__base__" else model, row)
        torch.testing.assert_close(mixed[i : i + 1], alone, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.in_turn("beams")
def test_mixed_batch_generates_as_one_by_one(two, batch, beams):
    model = two[0]
    names = ["default", "second"]
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": beams}
    mixed = model.generate(**clone(batch), adapter_names=names, **options)
    for i, name in enumerate(names):
        model.set_adapter(name)
        alone = model.generate(**clone({key: value[i : i + 1] for key, value in batch.items()}), **options)
        assert mixed[i].tolist() == alone[0].tolist()


def test_mixed_batch_refuses_what_does_not_fit(case, two, batch, helpers):
    model = two[0]
    with pytest.raises(UserError, match=r"3 names.*batch has 2 samples"):
        helpers.logits(model, batch, adapter_names=["default", "second", "default"])
    with pytest.raises(UserError, match=r"1 names.*batch has 2 samples"):
        helpers.logits(model, batch, adapter_names=["default"])
    with pytest.raises(UserError, match="unknown adapters: nobody"):
        helpers.logits(model, batch, adapter_names=["default", "nobody"])
    with pytest.raises(UserError, match=r"model\.eval"):
        helpers.logits(model.train(), batch, adapter_names=["default", "second"])
    model.eval()
    with mixed_batch(model, ["default", "second"], num_beams=2), pytest.raises(UserError, match="batch of 3 rows"):
        helpers.logits(model, {key: value[[0, 0, 1]] for key, value in batch.items()})
    assert helpers.logits(model, batch).isfinite().all()


def clone(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in batch.items()}  # BLIP's generate writes into input_ids
