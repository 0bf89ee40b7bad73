"""Nothing a model can feed in makes a context or a gradient infinite or NaN."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from padapter.functional import p_laplacian_attention, p_laplacian_attention_reference, p_laplacian_weights

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# "apart": no subtraction of near-equal squares, so that every digit can be asked for.
FEATURES = ("generic", "apart", "identical", "nearly identical", "zero", "tiny", "logits 1e4", "large")
MASKS = ("none", "random", "all removed", "minus infinity", "lowest", "causal", "causal and random")

cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**16),
        "B": st.integers(1, 2),
        "Hkv": st.integers(1, 2),
        "groups": st.integers(1, 2),
        "N1": st.integers(1, 5),
        "N2": st.integers(1, 6),
        "dk": st.integers(1, 4),
        "dh": st.integers(1, 4),
        "p": st.sampled_from((1.0, 1.25, 1.5, 2.0, 2.5, 4.0, 10.0)),
        "mu": st.sampled_from((0.0, 1e-8, 0.1, 10.0)),
        "degree": st.sampled_from(("row", "symmetric")),
        "features": st.sampled_from(FEATURES),
        "mask": st.sampled_from(MASKS),
        "factor": st.booleans(),
        "dtype": st.sampled_from(DTYPES),
    }
)
# Mbar underflows everywhere and mu is 0, so that beta's derivative in mu is 1 / Mbar.
NEVER_CLOSE_ENOUGH = {
    **dict.fromkeys(("seed", "B", "Hkv", "groups", "N1", "N2", "dk", "dh"), 1),
    **{"p": 10.0, "mu": 0.0, "degree": "row", "features": "identical", "mask": "none"},
    **{"factor": False, "dtype": torch.float64},
}
modest = settings(deadline=None, max_examples=150)


def build(case):
    generator = torch.Generator().manual_seed(case["seed"])

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    B, H, Hkv, N1, N2 = case["B"], case["Hkv"] * case["groups"], case["Hkv"], case["N1"], case["N2"]
    tensors = {
        "query": draw(B, H, N1, case["dk"]),
        "key": draw(B, Hkv, N2, case["dk"]),
        "value": draw(B, Hkv, N2, case["dh"]),
        "node_query": draw(B, H, N1, case["dh"]),
    }
    options = {"degree": case["degree"]}
    match case["features"]:
        case "identical" | "nearly identical" as kind:
            feature, noise = draw(case["dh"]), 1e-4 if kind == "nearly identical" else 0.0
            for name in ("value", "node_query"):
                tensors[name] = feature + noise * tensors[name]
        case "apart":
            tensors["node_query"][..., 0] += 4
            tensors["value"][..., 0] -= 4
        case "zero":
            tensors = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        case "tiny":
            tensors = {name: 1e-7 * tensor for name, tensor in tensors.items()}
        case "logits 1e4":
            options["scale"] = 1e4 / (tensors["query"].abs().max() * tensors["key"].abs().max()).item()
        case "large":
            tensors = {name: 100 * tensor for name, tensor in tensors.items()}
    if case["factor"]:
        tensors["metric_factor"] = draw(H, case["dh"], case["dh"])
    tensors = {name: tensor.to(case["dtype"]).requires_grad_() for name, tensor in tensors.items()}
    tensors["p"] = torch.full((H,), case["p"], requires_grad=True)
    tensors["mu"] = torch.full((), case["mu"], requires_grad=True)
    return tensors, {**options, **mask(case, torch.rand(B, H, N1, N2, generator=generator) > 0.6)}


def mask(case, keep):
    match case["mask"]:
        case "none":
            return {}
        case "random":
            return {"attention_mask": keep}
        case "all removed":
            return {"attention_mask": torch.zeros_like(keep)}
        case "minus infinity":
            return {"attention_mask": torch.zeros(keep.shape, dtype=case["dtype"]).masked_fill(~keep, -torch.inf)}
        case "lowest":
            lowest = torch.finfo(case["dtype"]).min
            return {"attention_mask": torch.zeros(keep.shape, dtype=case["dtype"]).masked_fill(~keep, lowest)}
        case "causal":
            return {"is_causal": True}
    return {"is_causal": True, "attention_mask": keep}


@given(cases)
@example(NEVER_CLOSE_ENOUGH)
@settings(deadline=None, max_examples=400)
def test_forward_and_backward_are_finite(case):
    tensors, options = build(case)
    context = p_laplacian_attention(**tensors, **options)
    assert context.dtype == case["dtype"]
    assert bool(context.isfinite().all())
    # Small enough for the true gradients to fit into float16.
    upstream = 1e-2 * torch.randn(context.shape, generator=torch.Generator().manual_seed(case["seed"]))
    gradients = torch.autograd.grad(context, list(tensors.values()), upstream.to(context.dtype), allow_unused=True)
    for name, gradient in zip(tensors, gradients, strict=True):
        assert gradient is None or bool(gradient.isfinite().all()), name


@given(cases)
@modest
def test_float64_is_literal_for_every_shape_and_mask(case):
    tensors, options = build({**case, "features": "apart", "factor": False, "dtype": torch.float64})
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    context = p_laplacian_attention(**tensors, **options)
    literal = p_laplacian_attention_reference(**tensors, **options)
    torch.testing.assert_close(context, literal, rtol=1e-12, atol=1e-12)


@given(cases)
@modest
def test_row_weights_are_a_mean_over_what_is_attended(case):
    tensors, options = build({**case, "degree": "row", "dtype": torch.float64})
    weights, beta = p_laplacian_weights(**tensors, **options)
    assert bool((weights >= 0).all())
    assert bool((beta >= 0).all())
    total = weights.sum(-1) + beta
    torch.testing.assert_close(total[total > 0], torch.ones_like(total[total > 0]))
    if case["mu"] > 0 or case["mask"] in ("none", "lowest", "causal"):
        assert bool((total > 0).all())


@given(cases)
@modest
def test_the_order_of_keys_means_nothing(case):
    if "causal" in case["mask"]:
        case = {**case, "mask": "random"}
    tensors, options = build({**case, "features": "apart", "factor": False, "dtype": torch.float64})
    order = torch.randperm(case["N2"], generator=torch.Generator().manual_seed(case["seed"]))
    context = p_laplacian_attention(**tensors, **options)
    tensors = {**tensors, "key": tensors["key"][:, :, order], "value": tensors["value"][:, :, order]}
    if "attention_mask" in options:
        options["attention_mask"] = options["attention_mask"][..., order]
    torch.testing.assert_close(p_laplacian_attention(**tensors, **options), context, rtol=1e-12, atol=1e-12)


@given(st.floats(-1e4, 1e4), st.sampled_from(DTYPES), st.sampled_from(("row", "symmetric")))
@example(1e4, torch.float16, "symmetric")
@example(-1e4, torch.float16, "symmetric")
@settings(deadline=None, max_examples=50)
def test_one_key_of_any_score(score, dtype, degree):
    """With one key M = 1 whatever its score, so the context is known by hand."""
    query, value = torch.tensor([[2.0]], dtype=dtype), torch.tensor([[5.0]], dtype=dtype)
    key = torch.ones(1, 1, 1, 1, dtype=dtype)
    context = p_laplacian_attention(
        query.view(1, 1, 1, 1), key, value.view(1, 1, 1, 1), p=4, mu=2, scale=score / 2, degree=degree
    )
    # Mbar = 3^2 = 9, 2 mu / p = 1: (9 * 5 + 1 * 2) / 10
    torch.testing.assert_close(context.double().item(), 4.7, rtol=1e-2 if dtype == torch.bfloat16 else 1e-3, atol=0)


def test_float16_gradients_of_tiny_distances_fit_into_float16():
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (1e-6 * torch.randn(1, 1, 4, 3, generator=generator)).half().requires_grad_()
        for name in ("query", "key", "value")
    }
    weights, _ = p_laplacian_weights(**tensors, p=1.0, mu=0.0)
    upstream = torch.randn(weights.shape, generator=generator).half()
    for gradient in torch.autograd.grad(weights, list(tensors.values()), upstream):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_features_are_as_far_apart_as_rounding_errors(dtype):
    """With p = 1 and M equal, weights are as 1 / delta: a key equal to the query beside one at distance |x|."""
    eps = torch.finfo(dtype).eps
    for seed in range(50):
        x = torch.randn(64, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        value = torch.stack([x, 0 * x]).view(1, 1, 2, 64).clone().requires_grad_()
        query = x.view(1, 1, 1, 64)
        weights, _ = p_laplacian_weights(query, torch.zeros_like(value), value, p=1.0, mu=0.0)
        equal, other = weights.flatten()
        relative = (other / equal).item() ** 2  # delta^2 of the equal pair, in units of |x|^2
        assert eps < relative < 100 * eps
        (gradient,) = torch.autograd.grad(equal, value)
        assert bool((gradient[0, 0, 0] == 0).all())


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-2), (torch.float64, 1e-6)])
def test_close_features_are_not_taken_for_equal_ones(dtype, apart):
    x = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    value = torch.stack([x * (1 + apart), 0 * x]).view(1, 1, 2, 8)
    weights, _ = p_laplacian_weights(x.view(1, 1, 1, 8), torch.zeros_like(value), value, p=1.0, mu=0.0)
    equal, other = weights.flatten()
    assert abs((other / equal).item() / apart - 1) < 1e-2
