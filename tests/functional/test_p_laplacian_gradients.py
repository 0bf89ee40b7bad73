from __future__ import annotations

import pytest
import torch
from functional_cases import DEGREES, DH, MUS, N1, N2, PS, B, H, distance, inputs, mask_arguments
from torch.autograd import gradcheck

from padapter.functional import p_laplacian_attention, p_laplacian_attention_reference, p_laplacian_weights

NAMES = ("query", "key", "value", "node_query", "metric_factor", "p", "mu", "attention_mask")


def small(name: str | None = None) -> dict[str, torch.Tensor]:
    """One of everything differentiable; `name` asks for a gradient."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = {
        "query": draw(1, 2, 3, 2),
        "key": draw(1, 1, 4, 2),
        "value": draw(1, 1, 4, 3),
        "node_query": draw(1, 2, 3, 3),
        "metric_factor": draw(2, 3, 3),
        "p": torch.tensor([1.25, 2.5], dtype=torch.float64),
        "mu": torch.tensor([0.1, 0.7], dtype=torch.float64),
        "attention_mask": draw(1, 2, 3, 4),
    }
    if name is not None:
        tensors[name].requires_grad_()
    return tensors


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name, degree):
    tensors = small(name)

    def function(one):
        return p_laplacian_attention(**{**tensors, name: one}, degree=degree)

    assert gradcheck(function, (tensors[name],))


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_of_the_weights(name, degree):
    tensors = small(name)

    def function(one):
        weights, beta = p_laplacian_weights(**{**tensors, name: one}, degree=degree)
        return weights.square().sum() + beta.sum()

    assert gradcheck(function, (tensors[name],))


@pytest.mark.parametrize("degree", DEGREES)
def test_gradcheck_with_removed_keys_and_scalar_parameters(degree):
    tensors = small()
    tensors.pop("attention_mask")
    keep = torch.tensor([[True, False, True, True], [False] * 4, [True, True, False, True]])
    names = ("query", "key", "value", "node_query", "p", "mu")
    tensors["p"], tensors["mu"] = tensors["p"][0], tensors["mu"][0]
    leaves = tuple(tensors.pop(name).requires_grad_() for name in names)

    def function(*values):
        return p_laplacian_attention(
            **tensors, **dict(zip(names, values, strict=True)), degree=degree, attention_mask=keep
        )

    assert gradcheck(function, leaves)


@pytest.mark.parametrize("mask", ["none", "bool", "additive", "causal"])
@pytest.mark.parametrize("degree", DEGREES)
def test_gradients_are_those_of_the_literal_form(degree, mask):
    upstream = torch.randn(B, H, N1, DH, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    factor = torch.randn(H, DH, DH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for p in PS:
        for mu in MUS:
            gradients = []
            for function in (p_laplacian_attention, p_laplacian_attention_reference):
                leaves = {k: t.requires_grad_() for k, t in inputs().items()}
                leaves["metric_factor"] = factor.clone().requires_grad_()
                leaves["p"] = torch.full((H,), p, dtype=torch.float64, requires_grad=True)
                leaves["mu"] = torch.full((H,), mu, dtype=torch.float64, requires_grad=True)
                context = function(**leaves, degree=degree, **mask_arguments(mask))
                gradients.append(torch.autograd.grad(context, list(leaves.values()), upstream))
            for name, fast, literal in zip(leaves, *gradients, strict=True):
                assert distance(fast, literal) < 1e-10, (name, p, mu)


def test_mu_receives_a_gradient_at_zero():
    mu = torch.zeros((), dtype=torch.float64, requires_grad=True)
    tensors = inputs()
    p_laplacian_attention(**tensors, p=1.25, mu=mu).square().sum().backward()
    step = 1e-7
    above = p_laplacian_attention(**tensors, p=1.25, mu=step).square().sum()
    at = p_laplacian_attention(**tensors, p=1.25, mu=0.0).square().sum()
    assert abs(mu.grad.item() - (above - at).item() / step) < 1e-4 * abs(mu.grad.item())
    assert mu.grad.item() != 0


@pytest.mark.parametrize("p", [1.0, 1.5, 2.5])
def test_equal_features_send_no_gradient_through_their_distance(p):
    feature = torch.randn(DH, generator=torch.Generator().manual_seed(6), dtype=torch.float32)
    tensors = inputs(dtype=torch.float32)
    tensors["value"] = feature.expand_as(tensors["value"])
    factor = torch.eye(DH).expand(H, DH, DH).clone().requires_grad_()
    node_query = feature.expand(B, H, N1, DH)
    weights, _ = p_laplacian_weights(**tensors, p=p, mu=0.1, node_query=node_query, metric_factor=factor)
    (gradient,) = torch.autograd.grad(weights, factor, torch.randn(B, H, N1, N2))
    assert bool((gradient == 0).all())
