"""K steps of p-Laplacian message passing against the literal recursion."""

from __future__ import annotations

import pytest
import torch
from functional_cases import DEGREES, MASKS, B, H, distance, inputs, mask_arguments, output_weight
from hypothesis import given, settings
from test_p_laplacian_extremes import build, cases
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from padapter.functional import (
    appnp_attention,
    gcn_attention,
    gcnii_attention,
    metric_factor,
    p_laplacian_attention,
    p_laplacian_attention_reference,
)

STEPS = (1, 2, 3)


@pytest.mark.parametrize("update_values", [True, False])
@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("steps", STEPS)
def test_fast_is_literal(steps, degree, update_values):
    weight = output_weight()
    factor = metric_factor(weight, H)
    for mask in MASKS:
        for p in (1.0, 1.5, 2.0, 3.0):
            for mu in (0.1, 2.0):
                options = {"p": p, "mu": mu, "degree": degree, "steps": steps, "update_values": update_values}
                options |= mask_arguments(mask)
                fast = p_laplacian_attention(**inputs(), **options, metric_factor=factor)
                literal = p_laplacian_attention_reference(**inputs(), **options, output_weight=weight)
                assert distance(fast, literal) < 1e-11, (p, mu, mask)


def test_the_recursion_by_hand():
    """One query, one value: M = 1, D = 1, so that each step is a weighted mean of two numbers."""
    q = q0 = torch.tensor(2.0, dtype=torch.float64)
    v = v0 = torch.tensor(5.0, dtype=torch.float64)
    p, mu = 3.0, 0.75
    for _ in range(3):
        weight, restart = (q - v).abs() ** (p - 2), 2 * mu / p
        q, v = ((weight * b + restart * own) / (weight + restart) for b, own in ((v, q0), (q, v0)))
    shape = (1, 1, 1, 1)
    for function in (p_laplacian_attention, p_laplacian_attention_reference):
        context = function(
            q0.view(shape), torch.zeros(shape).double(), v0.view(shape), p=p, mu=mu, steps=3, update_values=True
        )
        torch.testing.assert_close(context.view(()), q)


@pytest.mark.parametrize("update_values", [True, False])
@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("name", ["query", "key", "value", "node_query", "p", "mu", "metric_factor"])
def test_gradcheck(name, degree, update_values):
    generator = torch.Generator().manual_seed(3)
    shapes = {"query": (1, 2, 3, 2), "key": (1, 1, 4, 2), "value": (1, 1, 4, 3), "node_query": (1, 2, 3, 3)}
    shapes |= {"metric_factor": (2, 3, 3)}
    tensors = {k: torch.randn(s, generator=generator, dtype=torch.float64) for k, s in shapes.items()}
    tensors |= {"p": torch.tensor([1.25, 2.5]).double(), "mu": torch.tensor([0.3, 0.7]).double()}
    keep = torch.tensor([[True, False, True, True], [False] * 4, [True, False, False, True]])
    tensors[name].requires_grad_()

    def function(one):
        return p_laplacian_attention(
            **{**tensors, name: one}, steps=3, update_values=update_values, degree=degree, attention_mask=keep
        )

    assert gradcheck(function, (tensors[name],))


@given(cases)
@settings(deadline=None, max_examples=200)
def test_forward_and_backward_are_finite(case):
    """K = 3, both sides moving. Gradients of float16 features may truly exceed float16 after three steps."""
    tensors, options = build(case)
    context = p_laplacian_attention(**tensors, **options, steps=3, update_values=True)
    assert bool(context.isfinite().all())
    if case["dtype"] != torch.float16:
        upstream = 1e-2 * torch.randn(context.shape, generator=torch.Generator().manual_seed(case["seed"]))
        gradients = torch.autograd.grad(context, list(tensors.values()), upstream.to(context.dtype), allow_unused=True)
        for name, gradient in zip(tensors, gradients, strict=True):
            assert gradient is None or bool(gradient.isfinite().all()), name


@given(cases)
@settings(deadline=None, max_examples=80)
def test_other_layers_are_finite(case):
    if case["dtype"] == torch.float16:  # sums over queries, degree "row", may leave its range
        case = {**case, "dtype": torch.bfloat16}
    tensors, options = build(case)
    for unused in ("p", "mu", "metric_factor"):
        tensors.pop(unused, None)
    H, dh = tensors["query"].shape[1], case["dh"]
    mapping = torch.randn(H, dh, dh, dtype=torch.float64, requires_grad=True)
    many = {"teleport": 0.1, "steps": 4, "update_values": True}
    for context in (
        gcn_attention(**tensors, **options),
        appnp_attention(**tensors, **options, **many),
        gcnii_attention(**tensors, **options, **many, theta=0.5, mapping=mapping),
    ):
        assert context.dtype == case["dtype"]
        assert bool(context.isfinite().all())
        for gradient in torch.autograd.grad(context.sum(), list(tensors.values()), allow_unused=True):
            assert gradient is None or bool(gradient.isfinite().all())


class _Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("degree", DEGREES)
def test_nothing_is_larger_than_the_scores(degree):
    heads, queries, keys = 2, 24, 30
    query, key, value = (torch.randn(1, heads, n, 4, requires_grad=True) for n in (queries, keys, keys))
    many = {"steps": 3, "update_values": True, "degree": degree}
    with _Largest() as largest:
        p_laplacian_attention(query, key, value, p=1.25, mu=0.1, **many).sum().backward()
        appnp_attention(query, key, value, teleport=0.1, **many).sum().backward()
    assert largest.numel == heads * queries * keys


def test_values_are_never_looked_at_by_the_host():
    tensors = {k: t.to("meta") for k, t in inputs().items()}
    p, mu = torch.ones(H, device="meta"), torch.ones((), device="meta")
    many = {"steps": 3, "update_values": True, "degree": "symmetric"}
    assert p_laplacian_attention(**tensors, p=p, mu=mu, **many).shape[:2] == (B, H)
    assert appnp_attention(**tensors, teleport=0.1, **many).shape[:2] == (B, H)


@pytest.mark.parametrize("update_values", [True, False])
def test_no_query_reaches_another_where_values_stay(update_values):
    tensors = inputs()
    options = {"p": 1.25, "mu": 0.1, "steps": 3, "update_values": update_values}
    before = p_laplacian_attention(**tensors, **options)
    tensors["query"][:, :, -1] += 1
    after = p_laplacian_attention(**tensors, **options)
    assert torch.equal(before[:, :, :-1], after[:, :, :-1]) == (not update_values)
