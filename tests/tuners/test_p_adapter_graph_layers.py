"""Graph layers inside models: who may update value nodes, padding, steps without effect, layers of one's own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import get_peft_model
from transformers import BertConfig, BertModel

from padapter.errors import UserError
from padapter.functional import attention_graph, p_laplacian_attention_reference
from padapter.training.trainer import AdapterTrainer
from padapter.tuners import MessagePassing, PAdapterConfig, register_message_passing
from padapter.tuners.p_adapter.message_passing import MESSAGE_PASSING, without_padding

LAYERS = {
    "pgnn": {"p": 1.25, "mu": 0.3},
    "appnp": {"message_passing": "appnp", "teleport": 0.2},
    "gcnii": {"message_passing": "gcnii", "theta": 1.0},
}


def disturb(model):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.rand(parameter.shape, generator=generator).to(parameter))


def tiny_bert(attention):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=32, initializer_range=0.25, attn_implementation=attention,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).eval()


@pytest.fixture
def calls(monkeypatch):
    """What the graph layers were called with, and what they returned."""
    found = []

    def record(name, context):
        def recorded(*args, **kwargs):
            found.append((name, args, kwargs, context(*args, **kwargs)))
            return found[-1][-1]

        return recorded

    for name, layer in list(MESSAGE_PASSING.items()):
        monkeypatch.setitem(MESSAGE_PASSING, name, dataclasses.replace(layer, context=record(name, layer.context)))
    return found


@pytest.mark.parametrize("form", ["projected", "bottleneck"])
@pytest.mark.parametrize("layer", LAYERS)
def test_value_nodes_move_in_encoders_only(tiny_blip, calls, layer, form):
    config = PAdapterConfig(**LAYERS[layer], form=form, steps=3, where=["vision", "decoder"])
    model = get_peft_model(tiny_blip, config).eval()
    image = torch.randn(1, 3, 32, 32)
    model(pixel_values=image, input_ids=torch.randint(3, 40, (1, 5)))
    assert {name for name, *_ in calls} == {layer}
    assert [kwargs["update_values"] for _, _, kwargs, _ in calls] == [True] * 2 + [False] * 4
    symmetric = "symmetric" if form == "projected" else "row"
    assert [kwargs["degree"] for _, _, kwargs, _ in calls] == [symmetric] * 2 + ["row"] * 4
    assert {kwargs["steps"] for _, _, kwargs, _ in calls} == {3}


def test_steps_in_a_model_are_those_of_the_literal_form(tiny_blip, calls):
    model = get_peft_model(tiny_blip.double(), PAdapterConfig(p=1.25, mu=0.3, steps=3, where="all")).eval()
    model.double()(
        pixel_values=torch.randn(1, 3, 32, 32).double(),
        input_ids=torch.randint(3, 40, (2, 5))[:1],
        attention_mask=torch.tensor([[1, 1, 1, 1, 0]]),
    )
    layers = [m for m in model.modules() if type(m).__name__ == "PAdapterLayer" and m.leaf("p")]
    assert len(calls) == len(layers) == 6
    vision = [layer for layer in layers if layer.part == "vision"]
    for (_, (query, key, value), kwargs, context), layer in zip(
        calls, vision + [layer for layer in layers if layer.part != "vision"], strict=True
    ):
        kwargs.pop("dropout_p")
        kwargs["metric_factor"] = None
        weight = layer.base_layer.weight
        literal = p_laplacian_attention_reference(query, key, value, **kwargs, output_weight=weight)
        torch.testing.assert_close(context, literal, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("form", ["projected", "bottleneck"])
@pytest.mark.parametrize("layer", LAYERS)
def test_padding_changes_nothing_in_an_encoder(layer, form, attention):
    model = get_peft_model(tiny_bert(attention), PAdapterConfig(**LAYERS[layer], form=form, steps=3)).double().eval()
    disturb(model)
    ids = torch.randint(3, 40, (2, 7))
    mask = torch.tensor([[1] * 7, [0, 1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask, position_ids=torch.arange(7)[None]).last_hidden_state
        alone = model(input_ids=ids[1:, 1:5], position_ids=torch.arange(1, 5)[None]).last_hidden_state
    torch.testing.assert_close(padded[1:, 1:5], alone, atol=1e-9, rtol=1e-9)


def test_a_key_removed_from_every_query_takes_its_query_along():
    keep = torch.tensor([[True, True, False], [True, False, False], [True, True, False]]).view(1, 1, 3, 3)
    assert without_padding(keep, 3, 3)[0, 0].tolist() == [*keep[0, 0, :2].tolist(), [False] * 3]
    for lowest in (-torch.inf, torch.finfo(torch.float32).min):
        additive = torch.zeros(1, 1, 3, 3).masked_fill(~keep, lowest)
        emptied = without_padding(additive, 3, 3)
        assert emptied[0, 0, :2].tolist() == additive[0, 0, :2].tolist()
        assert emptied[0, 0, 2].tolist() == [-torch.inf] * 3
    column = torch.tensor([True, True, False]).view(1, 1, 1, 3)
    assert without_padding(column, 3, 3)[0, 0].tolist() == [[True, True, False]] * 2 + [[False] * 3]
    assert without_padding(column, 2, 3) is column


def test_padding_of_keys_says_nothing_of_queries_in_cross_attention(calls):
    """Three queries and three keys by chance, the last key padding: all queries still take part."""
    model = get_peft_model(tiny_bert("eager"), PAdapterConfig(p=1.25, steps=2)).eval()
    layer = model.base_model.model.encoder.layer[0].attention.output.dense
    call = _call(layer, torch.tensor([True, True, False]).view(1, 1, 1, 3))
    layer.attend(call)
    assert calls[-1][2]["attention_mask"].shape == (1, 1, 3, 3)
    site = layer.__dict__["_site"]
    layer.__dict__["_site"] = dataclasses.replace(site, cross=True)
    layer.attend(call)
    assert calls[-1][2]["attention_mask"] is call.attention_mask


def _call(layer, mask):
    from padapter.architectures import AttentionCall

    query, key, value = torch.randn(3, 1, 4, 3, 8)
    return AttentionCall(
        query=query, key=key, value=value, attention_mask=mask, is_causal=False, scaling=None, dropout=0.0,
        plain=lambda: None, need_weights=False,
    )  # fmt: skip


@pytest.mark.parametrize("targets", [None, ["output.dense"], "all-linear"])
@pytest.mark.parametrize(
    "options",
    [{"message_passing": "appnp"}, {"p": 2.0, "learn_p": False}, {"message_passing": "appnp", "form": "bottleneck"}],
)
def test_steps_that_change_nothing_are_refused(tiny_blip, options, targets):
    decoder = tiny_blip.text_decoder
    if targets == ["output.dense"] and options.get("form") != "bottleneck":
        options = options | {"ffn_adapter": True}
    before = list(decoder.state_dict())
    with pytest.raises(UserError, match=r"`steps`=2 has no effect with message_passing=.* in a decoder"):
        get_peft_model(decoder, PAdapterConfig(**options, steps=2, target_modules=targets))
    assert list(decoder.state_dict()) == before


@pytest.mark.parametrize(
    "options",
    [
        {"message_passing": "appnp", "where": "all"},
        {"message_passing": "appnp", "where": "vision"},
        {"p": 2.0},
        {"p": 1.5, "learn_p": False},
        {"message_passing": "gcnii"},
    ],
)
def test_steps_that_change_something_are_not(tiny_blip, options):
    get_peft_model(tiny_blip, PAdapterConfig(**options, steps=2))


def test_gcnii_starts_as_appnp(tiny_blip, fresh_blip):
    batch = {"pixel_values": torch.randn(1, 3, 32, 32), "input_ids": torch.randint(3, 40, (1, 5))}
    options = {"where": "all", "steps": 3, "teleport": 0.2}
    with torch.no_grad():
        logits = [
            get_peft_model(model, PAdapterConfig(message_passing=name, **options)).eval()(**batch).logits
            for name, model in (("appnp", tiny_blip), ("gcnii", fresh_blip()))
        ]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["projected", "bottleneck"])
def test_weight_decay_pulls_the_mapping_of_gcnii_to_the_identity(tiny_blip, calls, form):
    config = PAdapterConfig(message_passing="gcnii", form=form, init_weights=False)
    model = get_peft_model(tiny_blip, config).eval()
    disturb(model)
    batch = {"pixel_values": torch.randn(1, 3, 32, 32), "input_ids": torch.randint(3, 40, (1, 5))}
    decaying = AdapterTrainer.get_decay_parameter_names(object.__new__(AdapterTrainer), model)
    parameters = [value for name, value in model.named_parameters() if name in decaying and "mapping" in name]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=1.0)
    with torch.no_grad():
        model(**batch)
        before = [kwargs["mapping"] for *_, kwargs, _ in calls]
        for value in parameters:
            value.grad = torch.zeros_like(value)
        for _ in range(10):
            optimizer.step()
        calls.clear()
        model(**batch)
    assert len(calls) == len(parameters) == 4
    for mapping, (*_, kwargs, _) in zip(before, calls, strict=True):
        identity = torch.eye(mapping.shape[-1])
        assert (mapping - identity).abs().max() > 0.1
        torch.testing.assert_close(kwargs["mapping"] - identity, 0.9**10 * (mapping - identity))


def test_a_small_change_of_the_mapping_survives_half_precision(tiny_blip, calls):
    config = PAdapterConfig(message_passing="gcnii")
    model = get_peft_model(tiny_blip.bfloat16(), config, autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "mapping" in name:
                value.fill_(1e-4)
        model(pixel_values=torch.randn(1, 3, 32, 32).bfloat16(), input_ids=torch.randint(3, 40, (1, 5)))
    for *_, kwargs, _ in calls:
        expected = torch.eye(kwargs["mapping"].shape[-1]) + 1e-4
        torch.testing.assert_close(kwargs["mapping"], expected.expand_as(kwargs["mapping"]), atol=1e-6, rtol=0)


def nodes_and_neighbours(query, key, value, *, teleport, dropout_p=0.0, **graph):
    nodes = attention_graph(query, key, value, **graph)
    return (nodes.adjacency() @ nodes.value + teleport * nodes.query).to(value.dtype)


def test_a_layer_of_ones_own(tiny_blip, monkeypatch):
    monkeypatch.delitem(MESSAGE_PASSING, "gin", raising=False)
    gcn = MESSAGE_PASSING["gcn"]
    layer = MessagePassing(nodes_and_neighbours, gcn.weights, frozenset({"teleport"}))
    monkeypatch.setitem(MESSAGE_PASSING, "gin", layer)  # so that it is gone afterwards
    register_message_passing("gin", layer, replace=True)
    batch = {"pixel_values": torch.randn(1, 3, 32, 32), "input_ids": torch.randint(3, 40, (1, 5))}
    base = tiny_blip(**batch).logits
    model = get_peft_model(tiny_blip, PAdapterConfig(message_passing="gin", teleport=0.5)).eval()
    assert not [name for name, _ in model.named_parameters() if "p_adapter_p." in name or "p_adapter_mu" in name]
    assert (model(**batch).logits - base).abs().max() > 1e-2
    with pytest.raises(UserError, match=r"`p`=1\.25 has no effect with message_passing='gin'"):
        PAdapterConfig(message_passing="gin", p=1.25)


def test_what_cannot_be_registered():
    gcn = MESSAGE_PASSING["gcn"]
    with pytest.raises(UserError, match=r"'gcn' is registered already\. Pass replace=True"):
        register_message_passing("gcn", gcn)
    with pytest.raises(UserError, match=r"'mine' takes heads, temperature, which no adapter has; .* steps"):
        register_message_passing("mine", dataclasses.replace(gcn, takes=frozenset({"temperature", "heads", "p"})))
    assert MESSAGE_PASSING["gcn"] is gcn
    assert "mine" not in MESSAGE_PASSING
