"""The reference against the algebra of the paper, by hand where that is possible."""

from __future__ import annotations

import pytest
import torch
from functional_cases import DEGREES, HKV, N1, B, D, H, distance, inputs, output_weight

from padapter.functional import (
    metric_factor,
    p_adapter_reference,
    p_laplacian_attention,
    p_laplacian_attention_reference,
)
from padapter.functional.reference import adjacency, messages, update


def test_adjacency_is_bipartite_and_symmetric():
    M = torch.rand(3, 4).double()
    A = adjacency(M)
    torch.testing.assert_close(A, A.mT)
    torch.testing.assert_close(A[:3, 3:], M)
    assert not A[:3, :3].any()
    assert not A[3:, 3:].any()


def test_two_queries_two_values_by_hand():
    """Every number of equations (7) and (8) written out for p = 3, mu = 0.75, symmetric degrees."""
    M = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64)
    F = torch.tensor([[1.0], [2.0], [3.0], [-1.0]], dtype=torch.float64)
    D = [1.0, 1.0, 0.75, 1.25]
    p, mu = 3.0, 0.75
    bar = [
        [M[i, j] * abs((M[i, j] / D[i]) ** 0.5 * F[i, 0] - (M[i, j] / D[2 + j]) ** 0.5 * F[2 + j, 0]) for j in (0, 1)]
        for i in (0, 1)
    ]
    alpha = [1 / (bar[i][0] + bar[i][1] + 2 * mu / p) for i in (0, 1)]
    beta = [2 * mu / p * a for a in alpha]
    expected = [
        alpha[i] * sum(bar[i][j] * D[2 + j] ** -0.5 * F[2 + j, 0] for j in (0, 1)) + beta[i] * F[i, 0] for i in (0, 1)
    ]
    graph = messages(adjacency(M), F, torch.tensor(p).double(), torch.tensor(mu).double(), "symmetric")
    torch.testing.assert_close(graph.D, torch.tensor(D, dtype=torch.float64))
    torch.testing.assert_close(update(graph, F, F)[:2, 0], torch.stack(expected))


def test_p_2_mu_0_row_is_plain_attention():
    tensors = inputs()
    key, value = (tensors[name].repeat_interleave(H // HKV, dim=1) for name in ("key", "value"))
    plain = (tensors["query"] @ key.mT / key.shape[-1] ** 0.5).softmax(-1) @ value
    assert distance(p_laplacian_attention_reference(**tensors, p=2, mu=0), plain) < 1e-14


def test_large_mu_returns_the_query_nodes():
    context = p_laplacian_attention_reference(**inputs(), p=1.25, mu=1e12)
    assert distance(context, inputs()["query"]) < 1e-10


@pytest.mark.parametrize("degree", DEGREES)
def test_output_weight_and_its_factor_are_the_same_metric(degree):
    options = {"p": 1.25, "mu": 0.1, "degree": degree}
    weight = output_weight()
    literal = p_laplacian_attention_reference(**inputs(), **options, output_weight=weight)
    factored = p_laplacian_attention_reference(**inputs(), **options, metric_factor=metric_factor(weight, H))
    assert distance(factored, literal) < 1e-13
    assert distance(literal, p_laplacian_attention_reference(**inputs(), **options)) > 1e-2


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("p", [1.0, 1.25, 2.0, 4.0])
def test_the_seam_attention_function_then_projection_then_bottleneck_is_equation_9(degree, p):
    """Aggregating in head space and projecting once, as the library does, against projecting throughout."""
    generator = torch.Generator().manual_seed(7)
    weight, (bias, down, up) = (
        output_weight(),
        (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((D,), (3, D), (D, 3))),
    )
    tensors = inputs(kv_heads=H)
    options = {"p": p, "mu": 0.1, "degree": degree}
    context = p_laplacian_attention(**tensors, **options, metric_factor=metric_factor(weight, H))
    U = context.transpose(1, 2).reshape(B, N1, -1) @ weight.mT + bias
    literal = p_adapter_reference(
        **tensors,
        **options,
        output_weight=weight,
        output_bias=bias,
        down_weight=down,
        up_weight=up,
        activation=torch.nn.functional.gelu,
    )
    assert distance(torch.nn.functional.gelu(U @ down.mT) @ up.mT + U, literal) < 1e-12


def test_numbers_are_not_rounded_to_float32():
    """0.1 as a number and as a float64 tensor are the same mu."""
    as_number = p_laplacian_attention_reference(**inputs(), p=1.1, mu=0.1)
    p, mu = torch.tensor(1.1, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    torch.testing.assert_close(p_laplacian_attention_reference(**inputs(), p=p, mu=mu), as_number, rtol=0, atol=0)


def test_two_metrics_are_refused():
    with pytest.raises(ValueError, match="output_weight: given together with metric_factor"):
        p_laplacian_attention_reference(
            **inputs(),
            p=2,
            mu=0,
            output_weight=output_weight(),
            metric_factor=metric_factor(output_weight(), H),
        )
