"""Graph layers against PyTorch Geometric's, on the same weighted bipartite graph of N1 + N2 nodes."""

from __future__ import annotations

import pytest
import torch
from functional_cases import DEGREES, DH, HKV, MASKS, N1, N2, B, H, distance, inputs, mask_arguments
from torch.autograd import gradcheck
from torch_geometric.nn import APPNP, GCN2Conv, GCNConv
from torch_geometric.utils import dense_to_sparse

from padapter.functional import (
    appnp_attention,
    appnp_weights,
    attention_graph,
    gcn_attention,
    gcn_weights,
    gcnii_attention,
    gcnii_weights,
    p_laplacian_attention,
    p_laplacian_weights,
)
from padapter.functional.reference import adjacency, attention_probabilities

STEPS = (1, 2, 5)
TELEPORT, THETA = 0.15, 0.7


def mapping() -> torch.Tensor:
    return torch.randn(H, DH, DH, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def per_graph(layer, tensors, mask):
    """Run ``layer(features (N1 + N2, dh), edges, weights, head)`` on each head's graph: the queries' rows."""
    full = mask.get("attention_mask")
    full = None if full is None else full.expand(B, H, N1, N2)
    rows = []
    for b in range(B):
        for h in range(H):
            kv = h // (H // tensors["key"].shape[1])
            M = attention_probabilities(
                tensors["query"][b, h], tensors["key"][b, kv], None if full is None else full[b, h],
                mask.get("is_causal", False), DH**-0.5,
            )  # fmt: skip
            edges, weights = dense_to_sparse(adjacency(M))
            features = torch.cat([tensors["query"][b, h], tensors["value"][b, kv]])
            rows.append(layer(features, edges, weights, h)[:N1])
    return torch.stack(rows).unflatten(0, (B, H)).detach()


def bipartite(degree):
    return {"add_self_loops": False, "normalize": degree == "symmetric"}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("degree", DEGREES)
def test_gcn_is_gcnconv(degree, mask):
    conv = GCNConv(DH, DH, bias=False, **bipartite(degree)).double()
    conv.lin.weight.data = torch.eye(DH).double()
    expected = per_graph(lambda x, edges, weights, _: conv(x, edges, weights), inputs(), mask_arguments(mask))
    assert distance(gcn_attention(**inputs(), degree=degree, **mask_arguments(mask)), expected) < 1e-13


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("degree", DEGREES)
def test_appnp_is_appnp(degree, steps):
    layer = APPNP(steps, TELEPORT, **bipartite(degree))
    for mask in MASKS:
        expected = per_graph(lambda x, edges, weights, _: layer(x, edges, weights), inputs(), mask_arguments(mask))
        context = appnp_attention(
            **inputs(), degree=degree, teleport=TELEPORT, steps=steps, update_values=True, **mask_arguments(mask)
        )
        assert distance(context, expected) < 1e-13, mask


def gcn2(degree, steps, fixed_values):
    def layer(x, edges, weights, head):
        start = x
        for depth in range(1, steps + 1):
            conv = GCN2Conv(DH, TELEPORT, THETA, depth, **bipartite(degree)).double()
            conv.weight1.data = mapping()[head]
            x = conv(x, start, edges, weights)
            x = torch.cat([x[:N1], start[N1:]]) if fixed_values else x
        return x

    return layer


@pytest.mark.parametrize("update_values", [True, False])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("degree", DEGREES)
def test_gcnii_is_gcn2conv(degree, steps, update_values):
    options = {"teleport": TELEPORT, "theta": THETA, "mapping": mapping(), "degree": degree}
    for mask in MASKS:
        expected = per_graph(gcn2(degree, steps, not update_values), inputs(), mask_arguments(mask))
        context = gcnii_attention(
            **inputs(), **options, steps=steps, update_values=update_values, **mask_arguments(mask)
        )
        assert distance(context, expected) < 1e-13, mask


@pytest.mark.parametrize("degree", DEGREES)
def test_what_each_layer_becomes_at_its_limits(degree):
    options = {**inputs(), "degree": degree, **mask_arguments("bool")}
    plain = gcn_attention(**options)
    assert distance(plain, p_laplacian_attention(**options, p=2, mu=0)) < 1e-14
    assert distance(appnp_attention(**options, teleport=0.0), plain) < 1e-14
    assert distance(appnp_attention(**options, teleport=1.0), options["query"]) < 1e-14
    appnp = {**options, "teleport": TELEPORT, "steps": 3, "update_values": True}
    identity = torch.eye(DH).double().expand(H, DH, DH)
    expected = appnp_attention(**appnp)
    assert distance(gcnii_attention(**appnp, theta=THETA, mapping=identity), expected) < 1e-14
    assert distance(gcnii_attention(**appnp, theta=0.0, mapping=mapping()), expected) < 1e-14
    # p = 2 makes p-Laplacian message passing personalised propagation too, with t = mu / (1 + mu), D = 1 for queries.
    mu = TELEPORT / (1 - TELEPORT)
    once = appnp_attention(**options, teleport=TELEPORT)
    alive = torch.ones(B, 1, N1, 1, dtype=torch.bool)
    alive[0, :, 2] = False
    assert distance(p_laplacian_attention(**options, p=2, mu=mu) * alive, once * alive) < 1e-14


def test_appnp_with_fixed_values_is_one_step_whatever_k():
    once = appnp_attention(**inputs(), teleport=TELEPORT)
    many = appnp_attention(**inputs(), teleport=TELEPORT, steps=7)
    torch.testing.assert_close(many, once, rtol=0, atol=0)


@pytest.mark.parametrize("update_values", [True, False])
@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("name", ["query", "key", "value", "node_query", "mapping"])
def test_gradcheck(name, degree, update_values):
    generator = torch.Generator().manual_seed(3)
    shapes = {"query": (1, 2, 3, 2), "key": (1, 1, 4, 2), "value": (1, 1, 4, 3), "node_query": (1, 2, 3, 3)}
    tensors = {k: torch.randn(s, generator=generator, dtype=torch.float64) for k, s in shapes.items()}
    tensors["mapping"] = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    keep = torch.tensor([[True, False, True, True], [False] * 4, [True, False, False, True]])
    tensors[name].requires_grad_()

    def function(one):
        return gcnii_attention(
            **{**tensors, name: one}, teleport=TELEPORT, theta=THETA, steps=3, update_values=update_values,
            degree=degree, attention_mask=keep,
        )  # fmt: skip

    assert gradcheck(function, (tensors[name],))


LAYERS = {
    "gcn": (gcn_attention, gcn_weights, {}),
    "appnp": (appnp_attention, appnp_weights, {"teleport": TELEPORT}),
    "gcnii": (gcnii_attention, gcnii_weights, {"teleport": TELEPORT, "theta": 0.0}),
    "pgnn": (p_laplacian_attention, p_laplacian_weights, {"p": 1.25, "mu": 0.4}),
}


def layer_of(name, dtype=torch.float64):
    function, weights, options = LAYERS[name]
    return function, weights, options | ({"mapping": mapping().to(dtype)} if name == "gcnii" else {})


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("name", LAYERS)
def test_weights_and_own_share_make_the_context(name, degree):
    function, weights_of, options = layer_of(name)
    options = {**inputs(), **options, "degree": degree, **mask_arguments("bool")}
    weights, own = weights_of(**options)
    values = options["value"].repeat_interleave(H // HKV, dim=1)
    context = weights @ values + own.unsqueeze(-1) * options["query"]
    assert distance(context, function(**options)) < 1e-14


@pytest.mark.parametrize("degree", DEGREES)
def test_pgnn_weights_are_those_of_the_last_step(degree):
    options = {**inputs(kv_heads=H), "p": 1.25, "mu": 0.4, "degree": degree, "update_values": True}
    steps = [p_laplacian_weights(**options, steps=k)[0] for k in (1, 2)]
    assert distance(*steps) > 1e-2
    moved = p_laplacian_attention(**options)  # the queries after one step, where values stay
    fixed = options | {"update_values": False}
    again = p_laplacian_weights(**fixed | {"node_query": moved, "mu": 0.4})[0]
    assert distance(p_laplacian_weights(**fixed, steps=2)[0], again) < 1e-13


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_dropout_is_drawn_from_the_weights_and_keeps_the_expectation(name, steps):
    function, _, options = layer_of(name, torch.float32)
    if name != "gcn":
        options |= {"steps": steps, "update_values": True}
    if name == "pgnn":
        options["p"] = 2.0  # else the weights of the later steps depend on what was dropped before
    options = {**inputs(dtype=torch.float32), **options}
    expected = function(**options)
    torch.testing.assert_close(function(**options, dropout_p=0.0), expected, rtol=0, atol=0)
    samples = torch.stack([function(**options, dropout_p=0.3) for _ in range(500)])
    assert samples.std(0).min() > 1e-3
    assert ((samples.mean(0) - expected).abs() < 6 * samples.std(0) / 500**0.5).all()


@pytest.mark.parametrize("name", LAYERS)
def test_dtypes(name):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)):
        function, weights, options = layer_of(name, dtype)
        if name != "gcn":
            options |= {"steps": 3, "update_values": True}
        context = function(**inputs(dtype=dtype), **options, degree="symmetric")
        assert context.dtype == weights(**inputs(dtype=dtype), **options)[0].dtype == dtype
        wide = {k: t.double() for k, t in inputs(dtype=dtype).items()}
        options = {k: t.double() if isinstance(t, torch.Tensor) else t for k, t in options.items()}
        assert distance(context, function(**wide, **options, degree="symmetric")) < tolerance, dtype
        with torch.autocast("cpu", dtype=torch.bfloat16):
            options = layer_of(name, dtype)[2] | {k: options[k] for k in ("steps", "update_values") if k in options}
            inside = function(**inputs(dtype=dtype), **options, degree="symmetric")
        torch.testing.assert_close(inside, context, rtol=0, atol=0)


REFUSED = {
    "teleport above 1": (appnp_attention, {"teleport": 1.5}, "teleport: got 1.5, accepted is a number from 0 to 1"),
    "teleport of the weights": (appnp_weights, {"teleport": -0.1}, "teleport: got -0.1"),
    "no step": (appnp_attention, {"teleport": 0.1, "steps": 0}, "steps: got 0, accepted is an integer >= 1"),
    "half a step": (p_laplacian_attention, {"p": 2, "mu": 0, "steps": 1.5}, "steps: got 1.5"),
    "dropout": (gcn_attention, {"dropout_p": 2}, "dropout_p: got 2"),
    "theta": (gcnii_attention, {"teleport": 0.1, "theta": -1.0, "mapping": torch.ones(H, DH, DH)}, "theta: got -1"),
    "mapping": (gcnii_attention, {"teleport": 0.1, "theta": 1.0, "mapping": torch.ones(DH, DH)}, "mapping: got"),
    "degree": (gcn_attention, {"degree": "column"}, "degree: got 'column'"),
    "mapping of the weights": (
        gcnii_weights, {"teleport": 0.1, "theta": 1.0, "mapping": torch.ones(DH)}, "mapping: got",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_arguments_name(case):
    function, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        function(**inputs(), **options)


def test_adjacency_of_the_graph():
    graph = attention_graph(**inputs(), degree="symmetric", **mask_arguments("bool"))
    assert graph.adjacency().shape == (B, H, N1, N2)
    M = attention_graph(**inputs(), **mask_arguments("bool")).adjacency()
    torch.testing.assert_close(M.sum(-1)[1], torch.ones(H, N1).double())
    assert not M[0, :, 2].any()  # a query without any key
    torch.testing.assert_close(graph.adjacency(), M / M.sum(-2, keepdim=True).clamp(min=1e-30).sqrt())
