from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from padapter.functional import metric_factor


def gram(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Wo Wo^T per head, head by head."""
    width = weight.shape[1] // heads
    slices = [weight[:, h * width : (h + 1) * width].double().mT for h in range(heads)]
    return torch.stack([Wo @ Wo.mT for Wo in slices])


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 6), st.integers(0, 6), st.integers(0, 2**16))
@settings(deadline=None, max_examples=150)
def test_it_factors_every_weight(d, heads, dh, rank, seed):
    """Wider and narrower than a head, full rank, rank-deficient and zero (rank 0)."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(d, rank, generator=generator, dtype=torch.float64)
    weight = left @ torch.randn(rank, heads * dh, generator=generator, dtype=torch.float64)
    R = metric_factor(weight, heads)
    assert R.shape == (heads, dh, dh)
    torch.testing.assert_close(R @ R.mT, gram(weight, heads), rtol=1e-12, atol=1e-12)


def test_it_is_the_cholesky_factor_where_there_is_one():
    weight = torch.randn(12, 4 * 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(metric_factor(weight, 4), torch.linalg.cholesky(gram(weight, 4)))


def test_lengths_behind_the_projection():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(12, 4 * 5, generator=generator, dtype=torch.float64)
    x = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    behind = torch.stack([torch.nn.functional.linear(x[h], weight[:, 5 * h : 5 * h + 5]) for h in range(4)])
    torch.testing.assert_close((x @ metric_factor(weight, 4)).norm(dim=-1), behind.norm(dim=-1))


def test_an_ill_conditioned_weight_keeps_its_small_directions():
    """A direction 1e-9 as long as the other: of its square, a Cholesky factorisation would have no digit."""
    weight = torch.tensor([[1.0, 1.0], [0.0, 1e-9]], dtype=torch.float64)
    apart = torch.tensor([1.0, -1.0], dtype=torch.float64) @ metric_factor(weight, 1)[0]
    torch.testing.assert_close(apart.norm(), torch.tensor(1e-9, dtype=torch.float64))


@pytest.mark.parametrize(
    ("given_dtype", "returned"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_dtype_and_no_gradient(given_dtype, returned):
    weight = torch.nn.Parameter(torch.randn(6, 8, generator=torch.Generator().manual_seed(2)).to(given_dtype))
    R = metric_factor(weight, 2)
    assert R.dtype == returned
    assert not R.requires_grad
    torch.testing.assert_close(R @ R.mT, gram(weight.detach(), 2).to(returned))


def test_zero_weight():
    assert not metric_factor(torch.zeros(6, 8), 2).any()


def test_meta_weight_keeps_its_place():
    R = metric_factor(torch.empty(6, 8, device="meta"), 2)
    assert R.shape == (2, 4, 4)
    assert R.device.type == "meta"


@pytest.mark.parametrize(
    ("weight", "heads", "message"),
    [
        (torch.ones(8), 2, r"weight: got torch.float32 of shape \(8,\)"),
        (torch.ones(6, 8, dtype=torch.uint8), 2, r"weight: got torch.uint8 .* dequantise"),
        (torch.ones(6, 8), 3, r"num_heads: got 3, accepted is a divisor of the weight's 8 columns"),
        (torch.ones(6, 8), 0, r"num_heads: got 0"),
        (torch.full((6, 8), float("nan")), 2, r"weight: holds a NaN"),
    ],
)
def test_refusals(weight, heads, message):
    with pytest.raises(ValueError, match=message):
        metric_factor(weight, heads)
