"""The fused kernels against the eager path in float64 and the literal reference: contexts and all gradients.

Native ones are C, for processors. Without a GPU, Triton's run in its interpreter, which knows nothing of a GPU's types,
registers and threads; that they compile is `test_kernel_compiles`. Products of bfloat16 are emulated there: factors are
rounded to it, and multiplied in float32.
"""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import (
    DEVICE,
    NATIVE,
    assert_near,
    double,
    error,
    inputs,
    kernels,
    masks,
    run,
    sizes_of_sums,
    small_and_quick,
)

from padapter.functional import p_laplacian_attention, p_laplacian_attention_reference
from padapter.functional.dispatch import forced
from padapter.functional.fused import launch

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Triton is built for Linux"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),  # numpy says where the interpreter divides by zero
]

slow_kernels = pytest.mark.parametrize("kernel", [pytest.param("triton", marks=pytest.mark.slow), *NATIVE])
HALF = (torch.float16, torch.bfloat16)
TABLE = launch.block_sizes
# Every value of every column at least once, and the pairs that share code.
CASES = [
    # dtype, mask, degree, p, mu, (dk, dh), (N1, N2), other
    (torch.float32, "none", "row", 1.0, 0.1, (32, 32), (7, 19), {}),
    (torch.float32, "bool", "row", 3.0, 0.1, (32, 40), (20, 19), {}),
    (torch.float32, "causal", "row", 1.5, 0.0, (40, 40), (20, 33), {}),
    (torch.float32, "causal and bool", "row", 1.5, 0.1, (32, 32), (33, 20), {"H": 1}),
    (torch.float32, "added", "symmetric", 1.5, 0.1, (32, 32), (20, 19), {}),
    (torch.float32, "causal and bool", "symmetric", 3.0, 0.0, (32, 8), (20, 13), {"factor": False}),
    (torch.float32, "column", "symmetric", 2.0, 0.1, (64, 64), (20, 11), {"kv_heads": 2}),
    (torch.float32, "lowest", "row", 3.0, 0.1, (8, 4), (9, 20), {"factor": False}),
    (torch.float32, "two dimensions", "row", 1.5, 0.1, (128, 128), (17, 18), {"H": 1}),
    (torch.float32, "none", "row", 1.5, 0.1, (256, 256), (3, 17), {"H": 1}),
    (torch.float16, "bool", "row", 1.5, 0.1, (64, 64), (20, 19), {}),
    (torch.float16, "causal", "symmetric", 1.5, 0.1, (32, 32), (12, 19), {"factor": False}),
    (torch.bfloat16, "added", "row", 1.0, 0.1, (64, 64), (20, 19), {}),
    (torch.bfloat16, "none", "row", 3.0, 0.1, (32, 32), (20, 9), {"factor": False}),
    (torch.bfloat16, "bool", "symmetric", 1.5, 0.1, (32, 32), (9, 19), {}),
]


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch):
    small_and_quick(monkeypatch)


def case(dtype, mask, degree, p, mu, widths, lengths, other):
    sizes = {"N1": lengths[0], "N2": lengths[1]}
    heads = {name: other[name] for name in other.keys() & {"H", "B"}}
    tensors, arguments = inputs(dtype=dtype, p=p, mu=mu, dk=widths[0], dh=widths[1], **sizes, **other)
    return tensors, {**arguments, "degree": degree, **masks(mask, dtype=dtype, **sizes, **heads)}


def name_of(given):
    return " ".join(str(it).removeprefix("torch.") for it in given)


@kernels
@pytest.mark.parametrize("given", CASES, ids=name_of)
def test_like_the_eager_path_in_float64(kernel, given):
    tensors, arguments = case(*given)
    exact = double(tensors), double(arguments)
    assert_near(run(kernel, tensors, arguments), run("eager", *exact), given[0], sums=sizes_of_sums(*exact))


@slow_kernels
@pytest.mark.parametrize("widths", [(32, 32), (40, 40), (64, 64), (16, 48)], ids=str)
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("mask", ["none", "bool", "column", "added", "lowest", "causal", "causal and bool"])
@pytest.mark.parametrize("degree", ["row", "symmetric"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_like_the_eager_path_in_float64_everywhere(kernel, dtype, degree, mask, p, widths):
    mu = 0.0 if p == 1.5 else 0.1
    kv_heads = 2 if widths == (40, 40) else 1
    given = (dtype, mask, degree, p, mu, widths, (20, 19), {"factor": widths != (64, 64), "kv_heads": kv_heads})
    tensors, arguments = case(*given)
    exact = double(tensors), double(arguments)
    assert_near(run(kernel, tensors, arguments), run("eager", *exact), dtype, sums=sizes_of_sums(*exact))


@kernels
@pytest.mark.parametrize("degree", ["row", "symmetric"])
def test_like_the_literal_reference(kernel, degree):
    tensors, arguments = inputs(N1=7, N2=18, dk=16, dh=8)
    arguments |= {"degree": degree, **masks("bool", N1=7, N2=18)}
    leaves = {name: tensor.double().requires_grad_() for name, tensor in tensors.items()}
    context = p_laplacian_attention_reference(**leaves, **arguments)
    upstream = torch.randn(context.shape, generator=torch.Generator().manual_seed(3)).to(context)
    gradients = dict(zip(leaves, torch.autograd.grad(context, list(leaves.values()), upstream), strict=True))
    assert_near(run(kernel, tensors, arguments), {"context": context.detach(), **gradients}, torch.float32)


@kernels
def test_numbers_for_p_and_mu_take_shorter_ways(kernel):
    """p = 2 needs no distances, mu = 0 no restart: other kernels than those of tensors."""
    tensors, arguments = inputs(node_query=False, N1=5, N2=6, dk=16, dh=16)
    tensors = {name: tensors[name] for name in ("query", "key", "value")}
    for p, mu in ((2.0, 0.0), (2.0, 0.3), (1.5, 0.0)):
        numbers = {**arguments, "p": p, "mu": mu}
        assert_near(run(kernel, tensors, numbers), run("eager", double(tensors), double(numbers)), torch.float32)
    plain = torch.nn.functional.scaled_dot_product_attention(
        tensors["query"], tensors["key"], tensors["value"], enable_gqa=True
    )
    with forced(kernel):
        assert error(p_laplacian_attention(**tensors, p=2.0, mu=0.0), plain) < 1e-6


def test_the_blocks_of_the_table(monkeypatch):
    """What runs on a GPU: blocks that differ in both directions, in pairs that do not divide each other's multiples."""
    monkeypatch.setattr(launch, "block_sizes", TABLE)
    tensors, arguments = inputs(N1=70, N2=75, H=1)
    arguments |= {"is_causal": True, "degree": "symmetric"}
    assert_near(run("triton", tensors, arguments), run("eager", double(tensors), double(arguments)), torch.float32)


@kernels
@pytest.mark.parametrize("mu", [0.0, 0.1])
def test_a_query_without_any_key(kernel, mu):
    """Its context is its own features, or zero where mu is; the others do not notice."""
    tensors, arguments = inputs(mu=mu, N1=6, N2=9)
    keep = torch.ones(1, 1, 6, 9, dtype=torch.bool, device=DEVICE)
    keep[..., 3, :] = False
    found = run(kernel, tensors, {**arguments, "attention_mask": keep})
    own = tensors["node_query"][:, :, 3]
    torch.testing.assert_close(found["context"][:, :, 3], own if mu > 0 else torch.zeros_like(own), rtol=0, atol=1e-6)
    expected = run("eager", double(tensors), {**double(arguments), "attention_mask": keep})
    assert_near(found, expected, torch.float32)


@kernels
def test_nothing_attended_at_all(kernel):
    tensors, arguments = inputs(mu=0.0, N1=5, N2=6)
    keep = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=DEVICE)
    for degree in ("row", "symmetric"):
        found = run(kernel, tensors, {**arguments, "attention_mask": keep, "degree": degree})
        assert all(bool((tensor == 0).all()) for tensor in found.values())


@kernels
@pytest.mark.parametrize("p", [1.0, 3.0])
def test_rows_of_the_lowest_number_are_uniform(kernel, p):
    """p/2 times the lowest number is beyond float32, and so would z be that took the score as it is."""
    tensors, arguments = inputs(p=p, N1=7)
    arguments["attention_mask"] = torch.full((1, 1, 7, 1), torch.finfo(torch.float32).min, device=DEVICE)
    found = run(kernel, tensors, arguments)
    eager = run("eager", tensors, arguments)
    assert_near({"context": found["context"]}, {"context": eager["context"]}, torch.float32)
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())


@kernels
def test_large_scores(kernel):
    """Of one-hot weights; true gradients of scores are below the rounding errors here, so only that they are finite."""
    tensors, arguments = inputs(N1=7)
    tensors |= {name: 100 * tensors[name] for name in ("query", "key")}
    found = run(kernel, tensors, arguments)
    expected = run("eager", double(tensors), double(arguments))["context"]
    assert error(found["context"], expected) < 1e-2  # scores of 1e5 are known to 1e-2
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())


@kernels
def test_large_features(kernel):
    tensors, arguments = inputs(N1=7)
    tensors |= {name: 1e4 * tensors[name] for name in ("value", "node_query")}
    assert_near(run(kernel, tensors, arguments), run("eager", double(tensors), double(arguments)), torch.float32)


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("p", [1.5, 3.0])
def test_equal_features_are_held_apart_as_in_the_eager_path(kernel, p, dtype):
    """Half of the keys equal every query: their distance is the floor, not noise, and no gradient goes through it."""
    tensors, arguments = inputs(dtype=dtype, p=p, factor=False, N1=7)
    tensors["node_query"][:] = tensors["value"][:, :, :1]
    tensors["value"][:, :, :10] = tensors["value"][:, :, :1]
    assert_near(run(kernel, tensors, arguments), run("eager", tensors, arguments), dtype, factor=10)


@kernels
def test_no_gradient_flows_through_a_distance_that_is_held(kernel):
    """Features so small that all distances are: those of the queries change nothing, without a restart."""
    tensors, arguments = inputs(p=1.0, mu=0.0, factor=False, N1=7, N2=9)
    tensors |= {name: 1e-11 * tensors[name] for name in ("value", "node_query")}
    found = run(kernel, tensors, arguments)
    expected = run("eager", tensors, arguments)
    assert bool((found["node_query"] == 0).all())
    for name in ("context", "value"):  # whose gradient goes through the sum
        assert error(found[name], expected[name]) < 1e-5


@kernels
def test_float16_gradients_of_tiny_distances_are_finite(kernel):
    tensors, arguments = inputs(dtype=torch.float16, p=1.0, mu=0.0, factor=False, N1=7, N2=9)
    tensors |= {name: 1e-6 * tensors[name] for name in ("value", "node_query")}
    assert all(bool(tensor.isfinite().all()) for tensor in run(kernel, tensors, arguments).values())


@kernels
def test_strides_do_not_matter(kernel):
    """Heads behind the sequence, as models hold them; a last dimension that is not contiguous; an expanded upstream."""
    tensors, arguments = inputs(N1=7, N2=9)
    moved = {
        name: it.transpose(1, 2).contiguous().transpose(1, 2) if it.dim() == 4 else it for name, it in tensors.items()
    }
    moved["value"] = tensors["value"].mT.contiguous().mT
    with forced(kernel):
        contexts = [p_laplacian_attention(**it, **arguments) for it in (tensors, moved)]
    torch.testing.assert_close(*contexts, rtol=0, atol=0)
    leaf = tensors["value"].clone().requires_grad_()
    with forced(kernel):
        p_laplacian_attention(**{**tensors, "value": leaf}, **arguments).sum().backward()
    assert bool(leaf.grad.isfinite().all())


@kernels
def test_the_same_bits_every_time(kernel):
    tensors, arguments = inputs(N1=17, N2=19, H=1)
    first, second = (run(kernel, tensors, {**arguments, "degree": "symmetric"}) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_what_is_asked_for_is_computed(monkeypatch):
    """Frozen keys and values need no kernel over keys."""
    launched = []
    plain = launch.Plan.run
    monkeypatch.setattr(launch.Plan, "run", lambda plan: (launched.append(plan.kernel), plain(plan)))
    tensors, arguments = inputs(N1=4, N2=5)
    tensors["p"].requires_grad_()
    with forced("triton"):
        p_laplacian_attention(**tensors, **arguments).sum().backward()
    assert launched == ["forward_kernel", "backward_rows_kernel"]
    assert bool((tensors["p"].grad != 0).all())


@kernels
@given(
    seed=st.integers(0, 2**16), N1=st.integers(1, 20), N2=st.integers(1, 20), dk=st.integers(1, 33),
    dh=st.integers(1, 33), p=st.sampled_from((1.0, 1.25, 2.5, 4.0)), mu=st.sampled_from((0.0, 0.1, 10.0)),
    mask=st.sampled_from(("none", "bool", "causal", "causal and bool")), degree=st.sampled_from(("row", "symmetric")),
    groups=st.integers(1, 2),
)  # fmt: skip
@settings(max_examples=3)
def test_any_shape(kernel, seed, N1, N2, dk, dh, p, mu, mask, degree, groups):
    sizes = {"N1": N1, "N2": N2}
    tensors, arguments = inputs(H=2, kv_heads=2 // groups, dk=dk, dh=dh, p=p, mu=mu, seed=seed, **sizes)
    keep = torch.rand(1, 1, N1, N2, generator=torch.Generator().manual_seed(seed)) > 0.3
    arguments |= {"is_causal": "causal" in mask, "degree": degree}
    if "bool" in mask:
        arguments["attention_mask"] = keep.to(DEVICE)
    expected = run("eager", double(tensors), double(arguments))
    # dh = 1 and p < 2: distances may be tiny, and their gradients as large as they are sensitive
    assert_near(run(kernel, tensors, arguments), expected, torch.float32, factor=100)
