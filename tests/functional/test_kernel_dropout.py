"""Attention dropout inside the fused kernels: which weights are dropped, and that nothing else changes.

The eager path with the mask of `dropout_mask` in place of its own is what kernels are compared with.
"""

from __future__ import annotations

import math
import sys

import pytest
import torch
from kernel_cases import (
    DEVICE,
    NATIVE,
    assert_near,
    both_with_one_mask,
    double,
    error,
    inputs,
    kernels,
    masks,
    run,
    seed_of,
    small_and_quick,
)
from torch.utils.checkpoint import checkpoint

from padapter.functional import dispatch, native, p_laplacian_attention
from padapter.functional.dispatch import forced
from padapter.functional.fused import dropout, launch, operators, self_check
from padapter.functional.fused.dropout import Dropout, dropout_mask

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Triton is built for Linux"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
]
needs_library = pytest.mark.skipif(not NATIVE or native.obstacle() is not None, reason=str(native.obstacle()))
# Where it is PyTorch that is tested, one kind is enough.
one_kind = pytest.mark.parametrize("kernel", NATIVE or ["triton"])
SMALL = {"N1": 5, "N2": 6, "dk": 8, "dh": 4}


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch):
    small_and_quick(monkeypatch)


# The numbers.


def deviations(drops, p):
    """How far a mask of (B, H, N1, N2) is from independent draws, in standard deviations, by name."""
    n, variance = drops.numel(), p * (1 - p)
    found = {"rate": (drops.mean() - p) / math.sqrt(variance / n)}
    for axis, shift in ((0, 1), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 8), (3, 16)):
        kept = drops.shape[axis] - shift
        product = (drops.narrow(axis, 0, kept) - p) * (drops.narrow(axis, shift, kept) - p)
        found[f"axis {axis}, {shift} apart"] = product.mean() / variance * math.sqrt(product.numel())
    for axis in (2, 3):  # sums over rows, or columns, vary as those of independent draws
        sums = drops.sum(axis)
        found[f"sums over axis {axis}"] = (sums.var() / (drops.shape[axis] * variance) - 1) * math.sqrt(
            sums.numel() / 2
        )
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 2])
def test_weights_are_dropped_at_the_rate_and_independently(seed, p):
    """Also of seeds that no generator would draw. The largest of a hundred normal numbers is about 2.6."""
    drops = (~dropout_mask(torch.tensor([seed]), 3, 4, 150, 160, p)).double()
    found = deviations(drops, p)
    assert max(map(abs, found.values())) < 4.5, found


def test_seeds_that_differ_little_have_nothing_in_common():
    p, size = 0.3, (2, 4, 100, 120)
    base = (~dropout_mask(torch.tensor([12345]), *size, p)).double() - p
    for other in (12346, 12345 + 2**31, 12345 + 2**32, 12345 + 2**40):
        drops = (~dropout_mask(torch.tensor([other]), *size, p)).double() - p
        z = (base * drops).mean() / (p * (1 - p)) * math.sqrt(drops.numel())
        assert abs(float(z)) < 4.5


def test_a_mask_does_not_depend_on_how_many_rows_and_columns_there_are():
    """So neither blocks nor what is computed beside a pair matter, and a mask of more keys goes on where one ended."""
    seed = torch.tensor([7])
    large, small = dropout_mask(seed, 1, 3, 30, 40, 0.4), dropout_mask(seed, 1, 3, 20, 10, 0.4)
    assert torch.equal(large[:, :, :20, :10], small)


def test_the_extreme_probabilities():
    seed = torch.tensor([3])
    assert not bool(dropout_mask(seed, 1, 1, 50, 50, 1.0).any())
    assert bool(dropout_mask(seed, 1, 1, 50, 50, 1e-12).all())
    assert Dropout.of(seed, 1.0) == (seed, 2**31 - 1, 0.0)


# The kernels drop these, and nothing else happens.


@kernels
@pytest.mark.parametrize("seed", [0, 2**63 - 2, 0x123456789ABCDEF])
def test_kernels_drop_exactly_what_the_mask_says(kernel, seed):
    """With values like unit vectors the context is the weights. Ends of blocks lie inside."""
    B, H, N1, N2, p = 2, 3, 21, 40, 0.4
    query, key = torch.randn(B, H, N1, 16, device=DEVICE), torch.randn(B, H, N2, 16, device=DEVICE)
    value = torch.eye(N2, device=DEVICE).expand(B, H, N2, N2)
    node_query = torch.zeros(B, H, N1, N2, device=DEVICE)
    with forced(kernel), pytest.MonkeyPatch.context() as patch:
        patch.setattr(dropout, "draw_seed", lambda device: seed_of(seed))
        given = {"p": 2.0, "mu": 0.0, "node_query": node_query}
        whole = p_laplacian_attention(query, key, value, **given)
        dropped = p_laplacian_attention(query, key, value, **given, dropout_p=p)
    keep = dropout_mask(seed_of(seed), B, H, N1, N2, p)
    assert torch.equal(dropped != 0, keep)
    torch.testing.assert_close(dropped, whole * keep / (1 - p), rtol=2e-6, atol=0)


CASES = [
    # dtype, mask, degree, p, mu, dropout
    (torch.float32, "none", "row", 1.5, 0.1, 0.1),
    (torch.float32, "causal and bool", "symmetric", 3.0, 0.1, 0.5),
    (torch.float32, "bool", "row", 1.5, 0.0, 0.3),
    (torch.float32, "added", "row", 2.0, 0.1, 0.1),
    (torch.float32, "column", "symmetric", 1.0, 0.1, 0.1),
    (torch.float16, "causal", "row", 1.5, 0.1, 0.1),
    (torch.bfloat16, "bool", "symmetric", 1.5, 0.1, 0.3),
]


@kernels
@pytest.mark.parametrize("given", CASES, ids=lambda it: " ".join(map(str, it)))
def test_like_the_eager_path_with_the_same_mask(monkeypatch, kernel, given):
    dtype, mask, degree, p, mu, dropout_p = given
    both_with_one_mask(monkeypatch)
    tensors, arguments = inputs(dtype=dtype, p=p, mu=mu, N1=20, N2=19, factor=degree == "row")
    arguments |= {"degree": degree, "dropout_p": dropout_p, **masks(mask, N1=20, N2=19, dtype=dtype)}
    expected = run("eager", double(tensors), double(arguments))
    assert_near(run(kernel, tensors, arguments), expected, dtype)


@kernels
def test_numbers_for_p_and_mu_take_shorter_ways(monkeypatch, kernel):
    both_with_one_mask(monkeypatch)
    tensors, arguments = inputs(node_query=False, N1=5, N2=18, dk=16, dh=16)
    tensors = {name: tensors[name] for name in ("query", "key", "value")}
    for p, mu in ((2.0, 0.0), (2.0, 0.3), (1.5, 0.0)):
        numbers = {**arguments, "p": p, "mu": mu, "dropout_p": 0.3}
        assert_near(run(kernel, tensors, numbers), run("eager", double(tensors), double(numbers)), torch.float32)


@kernels
def test_everything_dropped(monkeypatch, kernel):
    """The query nodes' own share is left, and nothing is infinite."""
    both_with_one_mask(monkeypatch)
    tensors, arguments = inputs(N1=5, N2=6)
    arguments["dropout_p"] = 1.0
    assert_near(run(kernel, tensors, arguments), run("eager", double(tensors), double(arguments)), torch.float32)


@one_kind
def test_gradients_are_those_of_finite_differences(monkeypatch, kernel):
    """At one seed the function is smooth: along any direction it changes as its gradient says."""
    monkeypatch.setattr(dropout, "draw_seed", lambda device: seed_of(99))
    tensors, arguments = inputs(N1=6, N2=7, dk=8, dh=8)
    arguments["dropout_p"] = 0.3
    gradients = run(kernel, tensors, arguments)
    gradients.pop("context")
    upstream = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(3)).to(DEVICE)  # as `run` has it
    step = 2e-3
    for name, tensor in tensors.items():
        direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5)).to(DEVICE)
        with forced(kernel), torch.no_grad():
            ends = [
                (p_laplacian_attention(**{**tensors, name: tensor + sign * step * direction}, **arguments) * upstream)
                .double()
                .sum()
                for sign in (1, -1)
            ]
        change = float((ends[0] - ends[1]) / (2 * step))
        slope = float((gradients[name] * direction).double().sum())
        assert change == pytest.approx(slope, rel=2e-2, abs=2e-2), name


@needs_library
def test_the_mean_over_many_seeds_is_what_nothing_dropped_gives():
    tensors, arguments = inputs(**SMALL, device=torch.device("cpu"))
    torch.manual_seed(0)
    with forced("native"):
        whole = p_laplacian_attention(**tensors, **arguments)
        many = torch.stack([p_laplacian_attention(**tensors, **arguments, dropout_p=0.2) for _ in range(1500)])
    z = (many.mean(0) - whole) / (many.std(0) / math.sqrt(len(many)))
    assert float(z.abs().max()) < 4.5
    assert float(many.std(0).min()) > 0


@needs_library
def test_the_number_of_threads_changes_no_bit():
    tensors, arguments = inputs(B=3, H=2, N1=33, N2=50, device=torch.device("cpu"))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(4)
            found.append(run("native", tensors, {**arguments, "dropout_p": 0.2}))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@needs_library
def test_both_kinds_of_kernels_drop_the_same(monkeypatch):
    tensors, arguments = inputs(N1=20, N2=35)
    found = []
    for kernel in ("native", "triton"):
        torch.manual_seed(11)
        found.append(run(kernel, tensors, {**arguments, "dropout_p": 0.5}))
    assert_near(*found, torch.float32)


# Where seeds come from.


@kernels
def test_a_seed_repeats_a_call_and_the_next_call_has_another(kernel):
    tensors, arguments = inputs(**SMALL)
    arguments["dropout_p"] = 0.5
    with forced(kernel):
        torch.manual_seed(1)
        first, second = (p_laplacian_attention(**tensors, **arguments) for _ in range(2))
        torch.manual_seed(1)
        again = p_laplacian_attention(**tensors, **arguments)
        torch.manual_seed(2)
        other = p_laplacian_attention(**tensors, **arguments)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


@one_kind
def test_without_dropout_nothing_is_drawn(kernel):
    tensors, arguments = inputs(**SMALL)
    state = torch.get_rng_state if DEVICE.type == "cpu" else torch.cuda.get_rng_state
    before = state()
    with forced(kernel):
        p_laplacian_attention(**tensors, **arguments)
        assert torch.equal(state(), before)
        p_laplacian_attention(**tensors, **arguments, dropout_p=0.1)
        assert not torch.equal(state(), before)


@one_kind
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_drops_the_same_again(kernel, reentrant):
    tensors, arguments = inputs(**SMALL)
    names, found = list(tensors), []
    for wrapped in (False, True):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors.values()]

        def function(*given):
            return p_laplacian_attention(**dict(zip(names, given, strict=True)), **arguments, dropout_p=0.5)

        torch.manual_seed(6)
        with forced(kernel):
            context = checkpoint(function, *leaves, use_reentrant=reentrant) if wrapped else function(*leaves)
            torch.rand(3)  # whatever a model draws in between
            context.square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@one_kind
def test_the_compiler_sees_one_graph_and_every_call_draws_anew(kernel):
    tensors, arguments = inputs(**SMALL)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors.values()]
    names = list(tensors)

    def function(*given):
        return p_laplacian_attention(**dict(zip(names, given, strict=True)), **arguments, dropout_p=0.5)

    found = []
    with forced(kernel):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        for it in (function, compiled):
            torch.manual_seed(8)
            contexts = [it(*leaves) for _ in range(2)]
            assert not torch.equal(*contexts)
            found.append([contexts[1], *torch.autograd.grad(contexts[1].square().sum(), leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


# What PyTorch sees, and what is chosen.


@one_kind
def test_nothing_of_the_size_of_the_scores_is_kept(kernel):
    tensors, arguments = inputs(N1=20, N2=24, dk=4, dh=4)
    kept = []
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with forced(kernel), torch.autograd.graph.saved_tensors_hooks(keep, lambda it: it):
        p_laplacian_attention(**leaves, **arguments, dropout_p=0.1)
    assert max(kept) < 20 * 24


def test_dropout_is_no_obstacle(monkeypatch):
    tensors, _ = inputs(**SMALL)
    given = {name: tensors[name] for name in ("query", "key", "value", "node_query")}
    asked = []
    monkeypatch.setattr(dispatch, "device_obstacle", lambda *_: None)
    monkeypatch.setattr(dispatch, "on_device", lambda device: dispatch.Choice("triton", "here"))
    monkeypatch.setattr(dispatch, "_distrust", lambda *about: asked.append(about[-1]))
    for dropout_p in (0.0, 0.1):
        assert dispatch.choose(**given, dropout_p=dropout_p) == ("triton", "here")
    assert asked == [False, True]  # kernels that drop are others, to be compared by themselves


@pytest.mark.skipif(not NATIVE, reason="on a GPU the kernels are compared before their first use anyway")
def test_kernels_that_drop_are_compared_before_they_are_trusted(monkeypatch):
    monkeypatch.setattr(launch, "block_sizes", lambda *_: (128, 128, 4, 1))  # the fewer, the quicker
    before = torch.get_rng_state()
    self_check.failure.cache_clear()
    assert self_check.failure(DEVICE, torch.float32, 16, 16, True) is None
    assert torch.equal(torch.get_rng_state(), before)  # what a program draws does not depend on it
    self_check.failure.cache_clear()
    plain = launch.forward_plan

    def forward_plan(scores, features, *rest):
        return plain(scores, features._replace(dropout=features.dropout._replace(below=2**30)), *rest)

    monkeypatch.setattr(operators, "forward_plan", forward_plan)
    assert "context is off by" in self_check.failure(DEVICE, torch.float32, 16, 16, True)
    self_check.failure.cache_clear()


def test_several_steps_drop_eagerly():
    tensors, arguments = inputs(**SMALL)
    arguments |= {"dropout_p": 0.5, "steps": 2}
    torch.manual_seed(1)
    first = p_laplacian_attention(**tensors, **arguments)
    assert error(first, p_laplacian_attention(**tensors, **arguments)) > 0
