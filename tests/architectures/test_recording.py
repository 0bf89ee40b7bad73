"""Recorded attention is what the model computes with: equal outputs, true weights, true gradients, no trace."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tiny_models import MODELS, build
from torch import nn

from padapter.architectures import AttentionRecord, attention_sites, record_attention, weight_gradients
from padapter.architectures.blip import use_attention
from padapter.errors import UserError
from padapter.functional import Step
from padapter.tuners import PAdapterConfig
from padapter.tuners.batches import mixed_batch

CLOSE = {"atol": 2e-5, "rtol": 2e-4}


def shake(model: nn.Module, seed: int = 3) -> nn.Module:
    """Give adapters weights that change something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.3 * torch.rand(parameter.shape, generator=generator))
    return model.eval()


def adapted(model: nn.Module, **options: Any) -> nn.Module:
    return shake(get_peft_model(model, PAdapterConfig(where="all", **options)))


def outputs(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    found = model(**inputs)
    if hasattr(found, "logits"):
        return found.logits
    return found.text_embeds if hasattr(found, "text_embeds") else found.last_hidden_state


def state(model: nn.Module) -> list[tuple[Any, ...]]:
    """What a recorder might leave behind: classes, attributes, hooks."""
    return [
        (name, type(module), sorted(module.__dict__), module.__dict__.get("_padapter_layer"), *map(len, hooks(module)))
        for name, module in model.named_modules()
    ]


def hooks(module: nn.Module) -> tuple[Any, ...]:
    return module._forward_hooks, module._forward_pre_hooks


@pytest.mark.parametrize("with_adapter", [False, True], ids=["base", "adapter"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_recorded_models_compute_the_same_and_are_left_as_they_were(name, with_adapter):
    model = build(name)
    if with_adapter:
        model = adapted(model, p=1.4, mu=0.2)
    inputs, seen = MODELS[name].inputs(2), []
    with torch.no_grad():
        expected = outputs(model, inputs)
        before = state(model)
        with record_attention(model, on_call=seen.append) as kept:
            found = outputs(model, inputs)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert state(model) == before
    assert not kept
    called = {record.site.name for record in seen}
    assert called
    sites = {site.name: site for site in attention_sites(model)}
    assert called <= set(sites)
    for record in seen:
        weights, own = record.used.weights, record.used.own
        rows = (weights.sum(-1) + own).flatten()
        if record.calibrated is None or record.site.decoder:  # "row" degree, and plain attention
            torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-4, rtol=1e-4)
        assert (record.calibrated is not None) == with_adapter
        assert record.call.query.shape[:3] == weights.shape[:3]
        assert record.node_query.shape[:3] == weights.shape[:3]


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 40, (2, 6), generator=generator)
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


FORMS: dict[str, dict[str, Any]] = {
    "projected": {"p": 1.3, "mu": 0.3},
    "several steps": {"p": 1.3, "mu": 0.3, "steps": 3},
    "bottleneck": {"form": "bottleneck"},
    "gcn": {"message_passing": "gcn"},
    "appnp": {"message_passing": "appnp", "steps": 2, "teleport": 0.2},
    "gcnii": {"message_passing": "gcnii", "steps": 3, "teleport": 0.2},
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("form", FORMS)
def test_every_layer_and_form(tiny_blip, inputs, form, attention):
    use_attention(tiny_blip, attention)
    options = dict(FORMS[form])
    if options.get("message_passing") == "appnp":  # more steps mean nothing in a decoder alone
        options["where"] = "vision"
    model = shake(get_peft_model(tiny_blip, PAdapterConfig(**{"where": "all", **options}))).double()
    inputs = {**inputs, "pixel_values": inputs["pixel_values"].double()}
    with torch.no_grad():
        expected = model(**inputs).logits
        with record_attention(model) as records:
            torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-6, rtol=1e-6)
    passed = [message for record in records for message in record.messages]
    assert {message.adapter for message in passed} == {"default"}
    assert {message.form for message in passed} == {"bottleneck" if form == "bottleneck" else "projected"}
    assert all((record.calibrated is None) == (form == "bottleneck") for record in records if record.messages)


def test_records_say_where_they_come_from(tiny_blip, inputs):
    with torch.no_grad(), record_attention(tiny_blip) as records:
        tiny_blip(**inputs)
    found = [(record.site.part, record.site.cross, record.layer) for record in records]
    vision = [("vision", False, layer) for layer in range(2)]
    assert found == vision + [("language", cross, layer) for layer in range(2) for cross in (False, True)]
    cross = records[3]
    assert cross.site.name == "text_decoder.bert.encoder.layer.0.crossattention.self"
    assert cross.plain.weights.shape == (2, 4, 6, 17)
    assert not cross.messages
    assert cross.used is cross.plain


def test_plain_weights_are_those_of_the_model(tiny_blip, inputs):
    with torch.no_grad():
        expected = tiny_blip(**inputs, output_attentions=True).attentions
        with record_attention(tiny_blip, lambda site: site.part == "vision") as records:
            tiny_blip(**inputs)
    assert len(records) == len(expected)
    for record, weights in zip(records, expected, strict=True):
        torch.testing.assert_close(record.plain.weights, weights)


def test_weights_are_handed_on_to_who_asks_for_them(tiny_blip, inputs):
    model = adapted(tiny_blip, p=1.3, mu=0.3)
    with torch.no_grad(), record_attention(model) as records:
        found = model(**inputs, output_attentions=True).attentions
    torch.testing.assert_close(found[0], records[0].calibrated.weights)


@pytest.mark.parametrize("form", [None, *FORMS])
def test_gradients_are_those_of_finite_differences(tiny_blip, inputs, form):
    """Change one recorded weight by a little, inside the model, and see what the target does."""
    model: nn.Module = tiny_blip
    if form is not None:
        where = "vision" if form == "appnp" else "all"
        model = shake(get_peft_model(model, PAdapterConfig(**{"where": where, **FORMS[form]})))
    model = model.requires_grad_(False).double()
    inputs = {**inputs, "pixel_values": inputs["pixel_values"].double()}

    def target(change=None):
        def told(record: AttentionRecord) -> None:
            records.append(record)

        with record_attention(model, on_call=told, gradients=True):
            if change is None:
                return model(**inputs).logits[:, -1, 7].sum()
            with changed(*change):
                return model(**inputs).logits[:, -1, 7].sum()

    records: list[AttentionRecord] = []
    value = target()
    steps = [step for record in records for step in record.steps]
    assert len(steps) == (12 if form == "bottleneck" else 6)
    gradients = weight_gradients(value, steps)
    generator = torch.Generator().manual_seed(5)
    for index, (of_weights, of_own) in enumerate(gradients):
        assert of_weights.isfinite().all()
        for which, gradient in (("weights", of_weights), ("own", of_own)):
            direction = torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype)
            step = 1e-6
            up, down = (target((index, which, sign * step * direction)) for sign in (1, -1))
            expected = (up - down) / (2 * step)
            torch.testing.assert_close((gradient * direction).sum(), expected, atol=1e-5, rtol=1e-5)


@contextmanager
def changed(index: int, which: str, change: torch.Tensor) -> Iterator[None]:
    """Add something to the weights (or own shares) that the ``index``-th context is made of."""
    original, calls = Step.context, itertools.count()

    def context(step: Step, dropout_p: float = 0.0) -> torch.Tensor:
        if next(calls) == index:
            step = step._replace(**{which: getattr(step, which) + change})
        return original(step, dropout_p)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "context", context)
        yield


@pytest.mark.parametrize("with_adapter", [False, True], ids=["base", "adapter"])
def test_an_error_inside_leaves_no_trace(tiny_blip, inputs, with_adapter):
    model = adapted(tiny_blip) if with_adapter else tiny_blip
    with torch.no_grad():
        expected = model(**inputs).logits
    before = state(model)

    def refuse(record: AttentionRecord) -> None:
        raise ArithmeticError(record.site.name)

    with pytest.raises(ArithmeticError), torch.no_grad(), record_attention(model, on_call=refuse):
        model(**inputs)
    assert state(model) == before
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)


def test_a_disabled_adapter_is_recorded_as_the_base(tiny_blip, fresh_blip, inputs):
    model = adapted(tiny_blip, p=1.3)
    with torch.no_grad(), model.disable_adapter(), record_attention(model) as records:
        found = model(**inputs).logits
    fresh = fresh_blip()
    with torch.no_grad(), record_attention(fresh) as others:
        torch.testing.assert_close(found, fresh(**inputs).logits, **CLOSE)
    assert [r.site.name for r in records] == [r.site.name for r in others]
    for one, other in zip(records, others, strict=True):
        assert not one.messages
        torch.testing.assert_close(one.plain.weights, other.plain.weights)


def test_mixed_batches_say_who_passed_what(tiny_blip, inputs):
    model = adapted(tiny_blip, p=1.3, mu=0.2)
    model.add_adapter("other", PAdapterConfig(where="language", p=1.6, mu=0.1))
    shake(model)
    names = ["default", "__base__"]
    with torch.no_grad(), mixed_batch(model, names, inputs=inputs):
        expected = model(**inputs).logits
        with record_attention(model) as records:
            torch.testing.assert_close(model(**inputs).logits, expected, **CLOSE)
    for record in records:
        (message,) = record.messages
        assert (message.adapter, message.rows) == ("default", (0,))
        assert message.step.weights.shape[0] == 1
        assert record.calibrated is None
    with torch.no_grad():
        model.base_model.set_adapter(["default", "other"])
        expected = model(**inputs).logits
        with record_attention(model, {"text_decoder.bert.encoder.layer.1.attention.self"}) as records:
            torch.testing.assert_close(model(**inputs).logits, expected, **CLOSE)
    assert [message.adapter for message in records[0].messages] == ["default", "other"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(tiny_blip, inputs, reentrant):
    """Calls are told once, although they are computed twice, and parameters get the gradients they get unrecorded."""
    model = adapted(tiny_blip, p=1.3, mu=0.2).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    gradients = []
    for recording in (False, True):
        model.zero_grad()
        told: list[AttentionRecord] = []
        if recording:
            with record_attention(model, on_call=told.append, gradients=not reentrant):
                target = model(**inputs).logits[:, -1, 7].sum()
                if not reentrant:
                    weights = weight_gradients(target, [record.used for record in told], retain_graph=True)
                    assert all(of_weights.any() for of_weights, _ in weights)
                target.backward()
            assert len(told) == 6
        else:
            model(**inputs).logits[:, -1, 7].sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_generation_is_recorded_step_by_step(tiny_blip, inputs):
    with torch.no_grad(), record_attention(tiny_blip, lambda site: site.cross) as records:
        tiny_blip.generate(pixel_values=inputs["pixel_values"], max_new_tokens=3, min_new_tokens=3)
    assert [record.plain.weights.shape[2] for record in records[::2]] == [1, 1, 1]


def test_what_cannot_be_recorded(tiny_blip, inputs):
    unknown = pytest.raises(UserError, match="no attention module is called 'nowhere'; the model has: vision_model")
    with unknown, record_attention(tiny_blip, ["nowhere"]):
        pass
    with record_attention(tiny_blip), pytest.raises(UserError, match="recorded already"), record_attention(tiny_blip):
        pass
    assert not any("_padapter_layer" in module.__dict__ for module in tiny_blip.modules())
    with torch.no_grad(), record_attention(tiny_blip, gradients=True) as records:
        target = tiny_blip(**inputs).logits.sum()
    with pytest.raises(UserError, match=r"gradients=True, outside of torch.no_grad\(\)"):
        weight_gradients(target, [record.used for record in records])
