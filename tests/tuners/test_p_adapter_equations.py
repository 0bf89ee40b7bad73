"""The p-adapter inside BLIP against its equations, recomputed densely in float64 from the module's inputs."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import get_peft_model

from padapter.functional import native
from padapter.functional.fused import attention as fused
from padapter.tuners import PAdapterConfig
from padapter.tuners.p_adapter.metric import metric_factor_of

HEADS, DH = 4, 8


def linear(module, x):
    return x @ module.weight.double().T + (0 if module.bias is None else module.bias.double())


def heads(x):
    return x.unflatten(-1, (HEADS, DH)).transpose(1, 2)


def scores(attention, hidden, source, mask):
    query, key, value = (heads(linear(m, s)) for m, s in (
        (attention.query, hidden), (attention.key, source), (attention.value, source)))  # fmt: skip
    s = query @ key.transpose(-1, -2) / DH**0.5
    return query, value, s if mask is None else s + mask.double()


def pgnn(m, f_query, f_value, carried_query, carried_value, p, mu):
    """Equations (7)-(8) with D = 1, pair by pair: distances between f, what is aggregated is ``carried``."""
    distance = (f_query[..., :, None, :] - f_value[..., None, :, :]).norm(dim=-1)
    weight = torch.where(m > 0, m ** (p / 2) * distance ** (p - 2), torch.zeros_like(m))
    alpha = 1 / (weight.sum(-1, keepdim=True) + 2 * mu / p)
    return alpha * (weight @ carried_value) + (2 * mu / p) * alpha * carried_query, alpha * weight


def projected(attention, layer, name, hidden, source, mask, p, mu):
    query, value, s = scores(attention, hidden, source, mask)
    slices = layer.base_layer.weight.double().unflatten(1, (HEADS, DH)).permute(1, 2, 0)  # (H, dh, d): Wo per head
    f_query, f_value = query @ slices, value @ slices  # equation (6)
    per_head, weights = pgnn(s.softmax(-1), f_query, f_value, f_query, f_value, p, mu)
    u = per_head.sum(1) + layer.base_layer.bias.double()
    down, up = layer.p_adapter_down[name], layer.p_adapter_up[name]
    return torch.nn.functional.gelu(linear(down, u)) @ up.weight.double().T + up.bias.double() + u, weights  # (9)


def bottleneck(attention, layer, name, hidden, source, mask, p, mu):
    query, value, s = scores(attention, hidden, source, mask)
    m = s.softmax(-1)
    h = linear(layer.base_layer, (m @ value).transpose(1, 2).flatten(2))

    def feature(x):
        z = linear(layer.p_adapter_down[name], linear(layer.base_layer, x.transpose(1, 2).flatten(2)))
        return z.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    f_query, f_value = feature(query), feature(value)
    message = pgnn(m, f_query, f_value, f_query, f_value, p, mu)[0].transpose(1, 2).flatten(2)
    gate = torch.nn.functional.gelu(linear(layer.p_adapter_gate[name], h))
    return h + linear(layer.p_adapter_up[name], gate * message), m


def record(module, store):
    def hook(_, args, kwargs, output):
        store.append((args, kwargs, output))

    return module.register_forward_hook(hook, with_kwargs=True)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize(("form", "oracle"), [("projected", projected), ("bottleneck", bottleneck)])
@pytest.mark.parametrize("per_head", [False, True])
def test_adapted_attention_block(tiny_blip, form, oracle, cross, per_head):
    config = PAdapterConfig(form=form, p=1.25, mu=0.3, per_head=per_head, ffn_adapter=False)
    model = get_peft_model(tiny_blip, config).eval()
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.rand_like(parameter) * (0.5 if ".p_adapter_p" in name else 0.2))
    decoder = model.base_model.model.text_decoder
    layer = decoder.bert.encoder.layer[0]
    block = layer.crossattention if cross else layer.attention
    calls, outputs = [], []
    record(block.self, calls)
    record(block.output.dense, outputs)
    model.double()
    image = torch.randn(2, 5, 32, dtype=torch.double)
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        out = decoder(
            input_ids=torch.randint(3, 40, (2, 6)), attention_mask=mask, encoder_hidden_states=image,
            output_attentions=True,
        )  # fmt: skip
        (hidden,), kwargs, _ = calls[0]
        adapter = block.output.dense
        p, mu = adapter.p_adapter_p["default"], adapter.p_adapter_mu["default"]
        mu = 0.3 * (2 + torch.tanh(mu)) if form == "bottleneck" else mu
        p, mu = p.reshape(-1, 1, 1), mu.reshape(-1, 1, 1)
        source = kwargs["encoder_hidden_states"] if cross else hidden
        assert (source is image) == cross
        attention_mask = None if cross else kwargs["attention_mask"]
        expected, weights = oracle(block.self, adapter, "default", hidden, source, attention_mask, p, mu)
    torch.testing.assert_close(outputs[0][2], expected, atol=1e-10, rtol=1e-10)
    maps = (out.cross_attentions if cross else out.attentions)[0]
    torch.testing.assert_close(maps, weights, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", ["p", "mu"])
def test_out_of_range_exponents_are_clamped_and_come_back(tiny_blip, name):
    model = get_peft_model(tiny_blip, PAdapterConfig(p=1.5, mu=0.1))
    layer = model.base_model.model.text_decoder.bert.encoder.layer[0].attention.output.dense
    parameter = layer.leaf(name)["default"]
    low = {"p": 1.0, "mu": 0.0}[name]
    with torch.no_grad():
        parameter.fill_(low - 0.37)
    value = layer.exponents("default")[name == "mu"]
    assert value.item() == low
    value.backward()
    assert parameter.grad.item() == 1.0


def test_fixed_exponents_are_those_of_the_config(tiny_blip):
    config = PAdapterConfig(form="bottleneck", p=1.75, mu=10, learn_p=False, learn_mu=False)
    model = get_peft_model(tiny_blip, config)
    layer = model.base_model.model.text_decoder.bert.encoder.layer[0].attention.output.dense
    assert layer.exponents("default") == (1.75, 20.0)  # the authors' mu starts at twice the given value
    assert not [name for name, _ in model.named_parameters() if "p_adapter_p" in name or "p_adapter_mu" in name]


def test_metric_follows_the_projection(tiny_blip):
    """R is remembered, but not beyond a change of the weight it was computed from."""
    model = get_peft_model(tiny_blip, PAdapterConfig(p=1.2)).eval()
    layer = model.base_model.model.text_decoder.bert.encoder.layer[0].attention.output.dense

    def gram():
        factor = layer.metric_factor(HEADS)
        return factor @ factor.mT

    def expected():
        slices = layer.base_layer.weight.detach().unflatten(1, (HEADS, DH)).permute(1, 2, 0)
        return slices @ slices.mT

    torch.testing.assert_close(gram(), expected())
    assert layer.metric_factor(HEADS) is layer.metric_factor(HEADS)
    with torch.no_grad():
        layer.base_layer.weight.mul_(2)
    torch.testing.assert_close(gram(), expected())
    layer.base_layer.weight = torch.nn.Parameter(torch.randn(32, 32))
    torch.testing.assert_close(gram(), expected())
    model.double()
    assert layer.metric_factor(HEADS).dtype == torch.float64


def test_output_projection_without_its_attention_is_refused(tiny_blip):
    model = get_peft_model(tiny_blip, PAdapterConfig())
    layer = model.base_model.model.text_decoder.bert.encoder.layer[0].attention.output.dense
    with pytest.raises(RuntimeError, match="attention function"):
        layer(torch.randn(1, 2, 32))


def test_attention_dropout_drops_only_in_training(tiny_blip):
    for module in tiny_blip.modules():
        if type(module).__name__ == "BlipTextSelfAttention":
            module.dropout.p = 0.5
    model = get_peft_model(tiny_blip, PAdapterConfig())
    batch = {"pixel_values": torch.randn(1, 3, 32, 32), "input_ids": torch.randint(3, 40, (1, 5))}
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(**batch).logits, model(**batch).logits)
        model.train()
        assert not torch.equal(model(**batch).logits, model(**batch).logits)


@pytest.mark.skipif(native.obstacle() is not None, reason=str(native.obstacle()))
@pytest.mark.parametrize("form", ["projected", "bottleneck"])
def test_attention_dropout_reaches_the_kernels(tiny_blip, monkeypatch, form):
    """Of self- and cross-attention, as probability and seed, and in evaluation without."""
    for module in tiny_blip.modules():
        if type(module).__name__ == "BlipTextSelfAttention":
            module.dropout.p = 0.25
    model = get_peft_model(tiny_blip, PAdapterConfig(form=form))
    seen = []
    plain = fused.p_laplacian_context
    names = [argument.name for argument in torch.ops.padapter.p_laplacian_forward.default._schema.arguments]

    def look(*given):
        arguments = dict(zip(names, given, strict=True))
        seen.append((arguments["key"].shape[2], arguments["dropout_p"], arguments["seed"]))
        return plain(*given)

    monkeypatch.setattr(fused, "p_laplacian_context", look)
    batch = {"pixel_values": torch.randn(1, 3, 32, 32), "input_ids": torch.randint(3, 40, (1, 5))}
    model.train()(**batch)
    assert {(keys, dropout) for keys, dropout, _ in seen} == {(5, 0.25), (17, 0.25)}  # words, and patches
    seeds = [int(seed) for *_, seed in seen]
    assert len(set(seeds)) == len(seeds) == 4  # two layers: each drops others
    seen.clear()
    model.eval()(**batch)
    assert [(dropout, seed) for _, dropout, seed in seen] == [(0.0, None)] * 4


def test_a_compiled_graph_asks_the_copy_of_a_layer_for_its_own_metric(tiny_blip):
    model = get_peft_model(tiny_blip, PAdapterConfig()).eval()
    layer = model.base_model.model.text_decoder.bert.encoder.layer[0].attention.output.dense
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with torch.no_grad():
            again.base_layer.weight.mul_(2)
        factor = metric_factor_of(again._number, torch.empty(0), HEADS, DH, False)
        torch.testing.assert_close(factor, 2 * layer.metric_factor(HEADS))
        assert factor is not again.metric_factor(HEADS)


def test_training_does_not_factorise_an_unchanged_projection_anew(tiny_blip, monkeypatch):
    """Trainers call ``train()`` at every step; a write that leaves no trace is noticed all the same."""
    from padapter.tuners.p_adapter import layer as module

    model = get_peft_model(tiny_blip, PAdapterConfig()).train()
    layer = next(
        m for m in model.modules() if isinstance(m, module.PAdapterLayer) and m.settings["default"].form != "vanilla"
    )
    heads = layer.__dict__["_site"].num_heads
    calls, factorise = [], module.metric_factor
    monkeypatch.setattr(module, "metric_factor", lambda *given: (calls.append(1), factorise(*given))[1])
    first = layer.metric_factor(heads)
    for _ in range(3):
        model.train()
        assert layer.metric_factor(heads) is first
    assert len(calls) == 1
    layer.get_base_layer().weight.data[0, 0] += 1e-3
    model.train()
    torch.testing.assert_close(layer.metric_factor(heads), factorise(layer.get_base_layer().weight.detach(), heads))
    assert len(calls) == 2


def test_layers_of_older_pickles_and_other_default_devices_work(tiny_blip):
    from padapter.tuners.p_adapter import layer as module
    from padapter.tuners.p_adapter import metric

    model = get_peft_model(tiny_blip, PAdapterConfig()).eval()
    layers = [m for m in model.modules() if isinstance(m, module.PAdapterLayer)]
    layer = next(it for it in layers if it.settings["default"].form == "projected")
    heads = layer.__dict__["_site"].num_heads
    expected = layer.metric_factor(heads)
    state = {**layer.__dict__, "_metric": (("another process",), expected)}
    del state["_metric_doubted"]
    layer.__setstate__(state)
    metric.direction.cache_clear()
    with torch.device("meta"):
        torch.testing.assert_close(layer.metric_factor(heads), expected)
    layer.train()
    torch.testing.assert_close(layer.metric_factor(heads), expected)


def test_a_change_is_noticed_under_autocast(tiny_blip):
    from padapter.tuners.p_adapter import layer as module

    model = get_peft_model(tiny_blip, PAdapterConfig()).train()
    layers = [m for m in model.modules() if isinstance(m, module.PAdapterLayer)]
    layer = next(it for it in layers if it.settings["default"].form == "projected")
    heads, weight = layer.__dict__["_site"].num_heads, layer.get_base_layer().weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = layer.metric_factor(heads)
        for index in range(len(weight)):
            weight.data[index, index] *= 1 + 1e-3
            model.train()
            after = layer.metric_factor(heads)
            assert after is not before
            before = after
