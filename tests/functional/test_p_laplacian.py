from __future__ import annotations

import pytest
import torch
from functional_cases import (
    DEGREES,
    DH,
    HKV,
    MASKS,
    MUS,
    N1,
    N2,
    PS,
    B,
    D,
    H,
    distance,
    inputs,
    mask_arguments,
    output_weight,
)
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from padapter.functional import (
    metric_factor,
    p_laplacian_attention,
    p_laplacian_attention_reference,
    p_laplacian_weights,
)
from padapter.functional.dispatch import forced


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("degree", DEGREES)
def test_fast_is_literal(degree, mask):
    for p in PS:
        for mu in MUS:
            for kv_heads in (H, HKV, 1):
                tensors = inputs(kv_heads=kv_heads)
                options = {"p": p, "mu": mu, "degree": degree, **mask_arguments(mask)}
                fast = p_laplacian_attention(**tensors, **options)
                literal = p_laplacian_attention_reference(**tensors, **options)
                assert fast.dtype == torch.float64
                assert distance(fast, literal) < 1e-12, (p, mu, kv_heads)


@pytest.mark.parametrize("d", [D, 3], ids=["full rank", "d < dh"])
@pytest.mark.parametrize("degree", DEGREES)
def test_fast_with_metric_factor_is_literal_in_the_projected_space(degree, d):
    weight = output_weight(d=d)
    for p in PS:
        for mu in MUS:
            options = {"p": p, "mu": mu, "degree": degree, **mask_arguments("bool")}
            fast = p_laplacian_attention(**inputs(), **options, metric_factor=metric_factor(weight, H))
            literal = p_laplacian_attention_reference(**inputs(), **options, output_weight=weight)
            assert distance(fast, literal) < 1e-12, (p, mu)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("mask", ["none", "bool", "additive"])
def test_float32(degree, mask):
    for p in PS:
        for mu in MUS:
            tensors = inputs(dtype=torch.float32)
            options = {"p": p, "mu": mu, "degree": degree, **mask_arguments(mask)}
            factor = metric_factor(output_weight().float(), H)
            fast = p_laplacian_attention(**tensors, **options, metric_factor=factor)
            literal = p_laplacian_attention_reference(**tensors, **options, metric_factor=factor)
            assert fast.dtype == torch.float32
            assert distance(fast, literal) < 1e-5, (p, mu)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("degree", DEGREES)
def test_half_precision_computes_in_float32_and_rounds_once(dtype, tolerance, degree):
    tensors = inputs(dtype=dtype)
    fast = p_laplacian_attention(**tensors, p=1.25, mu=0.1, degree=degree)
    assert fast.dtype == dtype
    assert distance(fast, p_laplacian_attention_reference(**tensors, p=1.25, mu=0.1, degree=degree)) < tolerance
    single = p_laplacian_attention(**{k: t.float() for k, t in tensors.items()}, p=1.25, mu=0.1, degree=degree)
    torch.testing.assert_close(fast, single.to(dtype), rtol=0, atol=0)


def test_dtypes_mix_and_the_context_has_values_dtype():
    tensors = inputs(dtype=torch.bfloat16)
    tensors["value"] = tensors["value"].float()
    assert p_laplacian_attention(**tensors, p=1.25, mu=0.1).dtype == torch.float32


def test_autocast_does_not_reach_inside():
    tensors = inputs(dtype=torch.float32)
    outside = p_laplacian_attention(**tensors, p=1.25, mu=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = p_laplacian_attention(**tensors, p=1.25, mu=0.1)
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


@pytest.mark.parametrize("kv_heads", [H, HKV, 1])
@pytest.mark.parametrize("mask", ["none", "bool", "column", "additive", "causal"])
@pytest.mark.parametrize("as_tensor", [False, True], ids=["numbers", "tensors"])
def test_p_2_mu_0_is_scaled_dot_product_attention(mask, kv_heads, as_tensor):
    tensors = inputs(kv_heads=kv_heads)
    options = mask_arguments(mask, dead_rows=False)
    p, mu = (torch.tensor(2.0), torch.tensor(0.0)) if as_tensor else (2, 0)
    ours = p_laplacian_attention(**tensors, p=p, mu=mu, **options, scale=0.7)
    theirs = scaled_dot_product_attention(
        tensors["query"],
        tensors["key"],
        tensors["value"],
        attn_mask=options.get("attention_mask"),
        is_causal=options.get("is_causal", False),
        scale=0.7,
        enable_gqa=True,
    )
    assert distance(ours, theirs) < 1e-14


def test_p_and_mu_per_head_are_the_heads_one_by_one():
    tensors = inputs(kv_heads=H)
    p, mu = torch.tensor([1.0, 1.5, 2.0, 3.0]), torch.tensor([0.0, 0.1, 1.0, 0.0])
    together = p_laplacian_attention(**tensors, p=p, mu=mu, degree="symmetric")
    for h in range(H):
        one = {k: t[:, h : h + 1] for k, t in tensors.items()}
        alone = p_laplacian_attention(**one, p=p[h].item(), mu=mu[h].double().item(), degree="symmetric")
        assert distance(together[:, h : h + 1], alone) < 1e-14


@pytest.mark.parametrize("degree", DEGREES)
def test_bottleneck_features_may_be_narrower_than_the_scores(degree):
    tensors = inputs(dk=8, dh=2)
    fast = p_laplacian_attention(**tensors, p=1.25, mu=0.1, degree=degree)
    assert fast.shape == (B, H, N1, 2)
    assert distance(fast, p_laplacian_attention_reference(**tensors, p=1.25, mu=0.1, degree=degree)) < 1e-12


def test_node_query_replaces_the_query_as_a_feature_but_not_in_the_scores():
    tensors = inputs()
    other = torch.randn_like(tensors["query"])
    weights, beta = p_laplacian_weights(**tensors, p=2, mu=0.5, node_query=other)
    plain, _ = p_laplacian_weights(**tensors, p=2, mu=0.5)
    assert distance(weights, plain) < 1e-15
    context = p_laplacian_attention(**tensors, p=2, mu=0.5, node_query=other)
    values = tensors["value"].repeat_interleave(H // HKV, dim=1)
    assert distance(context, weights @ values + beta[..., None] * other) < 1e-14


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("mu", MUS)
def test_weights_and_beta_give_the_context(degree, mu):
    tensors, options = inputs(), {"p": 1.25, "mu": mu, "degree": degree, **mask_arguments("bool")}
    weights, beta = p_laplacian_weights(**tensors, **options)
    values = tensors["value"].repeat_interleave(H // HKV, dim=1)
    context = weights @ values + beta[..., None] * tensors["query"]
    assert weights.shape == (B, H, N1, N2)
    assert beta.shape == (B, H, N1)
    assert distance(context, p_laplacian_attention(**tensors, **options)) < 1e-14
    assert bool((weights[~options["attention_mask"].expand_as(weights)] == 0).all())


def test_rows_and_beta_sum_to_one_in_row_degree():
    weights, beta = p_laplacian_weights(**inputs(), p=1.25, mu=0.3)
    torch.testing.assert_close(weights.sum(-1) + beta, torch.ones(B, H, N1, dtype=torch.float64))
    assert bool((beta > 0).all())


def test_small_p_favours_near_nodes_and_large_p_distant_ones():
    query = torch.zeros(1, 1, 1, 2)
    value = torch.tensor([[0.1, 0.0], [3.0, 0.0]]).view(1, 1, 2, 2)
    near, even, far = (
        p_laplacian_weights(query, torch.zeros_like(value), value, p=p, mu=0)[0].flatten() for p in (1, 2, 3)
    )
    torch.testing.assert_close(near, torch.tensor([30 / 31, 1 / 31]))  # M equal, so weights ~ delta^(p-2)
    torch.testing.assert_close(even, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(far, torch.tensor([1 / 31, 30 / 31]))


def test_causal_is_its_mask():
    causal = torch.ones(N1, N2, dtype=torch.bool).tril()
    options = {"p": 1.25, "mu": 0.1, "degree": "symmetric"}
    by_flag = p_laplacian_attention(**inputs(), **options, is_causal=True)
    by_mask = p_laplacian_attention(**inputs(), **options, attention_mask=causal)
    torch.testing.assert_close(by_flag, by_mask, rtol=0, atol=0)


def test_row_degree_does_not_see_the_future_and_symmetric_does():
    tensors = inputs(kv_heads=H)
    tensors["key"], tensors["value"] = tensors["key"][:, :, :N1], tensors["value"][:, :, :N1]
    for degree in DEGREES:
        options = {"p": 1.25, "mu": 0.1, "degree": degree}
        whole = p_laplacian_attention(**tensors, **options, is_causal=True)[:, :, 1]
        changed = {k: torch.cat([t[:, :, :2], t[:, :, 2:] + 1], dim=2) for k, t in tensors.items()}
        same = distance(p_laplacian_attention(**changed, **options, is_causal=True)[:, :, 1], whole) < 1e-13
        # one step with a cache: the query alone, all keys so far
        step = {k: t[:, :, 1:2] if k == "query" else t[:, :, :2] for k, t in tensors.items()}
        cached = distance(p_laplacian_attention(**step, **options)[:, :, 0], whole) < 1e-13
        assert (same, cached) == ((True, True) if degree == "row" else (False, False))


@pytest.mark.parametrize("degree", DEGREES)
def test_removed_keys_are_never_read(degree):
    tensors, removed = inputs(), [1, 4]
    keep = torch.ones(N2, dtype=torch.bool)
    keep[removed] = False
    options = {"p": 1.25, "mu": 0.1, "degree": degree}
    masked = p_laplacian_attention(**tensors, **options, attention_mask=keep)
    shorter = {k: t if k == "query" else t[:, :, keep] for k, t in tensors.items()}
    assert distance(masked, p_laplacian_attention(**shorter, **options)) < 1e-14
    poisoned = {k: t.clone() for k, t in tensors.items()}
    for name in ("key", "value"):
        poisoned[name][:, :, removed] = 1e30
    torch.testing.assert_close(
        p_laplacian_attention(**poisoned, **options, attention_mask=keep), masked, rtol=0, atol=0
    )


def test_minus_infinity_is_a_boolean_mask_and_finite_values_are_literal():
    keep = mask_arguments("bool")["attention_mask"]
    options = {"p": 1.25, "mu": 0.1}
    boolean = p_laplacian_attention(**inputs(), **options, attention_mask=keep)
    additive = torch.zeros(keep.shape, dtype=torch.float64).masked_fill(~keep, -torch.inf)
    torch.testing.assert_close(
        p_laplacian_attention(**inputs(), **options, attention_mask=additive), boolean, rtol=0, atol=0
    )
    # A row of finfo.min only: the scores drown in it, every key is attended alike.
    lowest = torch.full((N1, N2), torch.finfo(torch.float32).min)
    tensors = inputs(dtype=torch.float32)
    flat = p_laplacian_attention(**tensors, **options, attention_mask=lowest)
    no_scores = p_laplacian_attention(**tensors, **options, scale=0.0)
    torch.testing.assert_close(flat, no_scores)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("p", [1.25, 2.0])
def test_a_row_without_keys_keeps_its_own_features_or_nothing(degree, p):
    tensors = inputs()
    keep = torch.ones(N1, N2, dtype=torch.bool)
    keep[3] = False
    with_mu = p_laplacian_attention(**tensors, p=p, mu=0.1, degree=degree, attention_mask=keep)
    torch.testing.assert_close(with_mu[:, :, 3], tensors["query"][:, :, 3], rtol=0, atol=0)
    without = p_laplacian_attention(**tensors, p=p, mu=0.0, degree=degree, attention_mask=keep)
    assert bool((without[:, :, 3] == 0).all())


def test_an_empty_mask_row_takes_a_query_out_of_the_symmetric_degrees():
    tensors = inputs()
    keep = torch.ones(N1, 1, dtype=torch.bool)
    keep[-1] = False
    options = {"p": 1.25, "mu": 0.1, "degree": "symmetric"}
    padded = p_laplacian_attention(**tensors, **options, attention_mask=keep)
    alone = p_laplacian_attention(**{**tensors, "query": tensors["query"][:, :, :-1]}, **options)
    assert distance(padded[:, :, :-1], alone) < 1e-14


def test_dropout_drops_weights_and_leaves_the_normaliser_alone():
    tensors = inputs(kv_heads=H, dk=DH, dh=N2)
    tensors["value"] = torch.eye(N2, dtype=torch.float64).expand(B, H, N2, N2)  # the context shows the weights
    options = {"p": 1.25, "mu": 0.4}
    weights, beta = p_laplacian_weights(**tensors, **options)
    torch.manual_seed(0)
    dropped = p_laplacian_attention(**tensors, **options, dropout_p=0.25) - beta[..., None] * tensors["node_query"]
    zero = dropped.abs() < 1e-14
    assert 0.1 < zero.double().mean() < 0.4
    torch.testing.assert_close(dropped[~zero], (weights / 0.75)[~zero])
    nothing_left = p_laplacian_attention(**tensors, **options, dropout_p=1.0)
    torch.testing.assert_close(nothing_left, beta[..., None] * tensors["node_query"])


def test_dropout_keeps_the_expectation():
    tensors = inputs(dtype=torch.float32)
    torch.manual_seed(0)
    samples = [p_laplacian_attention(**tensors, p=1.25, mu=0.4, dropout_p=0.3) for _ in range(2000)]
    expected = p_laplacian_attention(**tensors, p=1.25, mu=0.4)
    torch.testing.assert_close(torch.stack(samples).mean(0), expected, atol=0.08, rtol=0)


class _Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

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
    with _Largest() as largest, forced("eager"):
        p_laplacian_attention(query, key, value, p=1.25, mu=0.1, degree=degree).sum().backward()
    assert largest.numel == heads * queries * keys  # not (n, n, dh), not (N1 + N2)^2


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("mask", MASKS)
def test_values_are_never_looked_at_by_the_host(degree, mask):
    """Tensors without data: anything like `if p == 2` or `.item()` on a tensor would fail."""
    tensors = {k: t.to("meta") for k, t in inputs().items()}
    options = {k: t.to("meta") if isinstance(t, torch.Tensor) else t for k, t in mask_arguments(mask).items()}
    p, mu = torch.ones(H, device="meta"), torch.ones((), device="meta")
    assert p_laplacian_attention(**tensors, p=p, mu=mu, degree=degree, **options).shape == (B, H, N1, DH)
