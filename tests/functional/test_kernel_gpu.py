"""The fused kernels at real sizes, on a GPU."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import TOLERANCE, assert_near, both_with_one_mask, double, error, inputs, masks, run

from padapter.functional import dispatch, p_laplacian_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
N = 4096


def large(dtype, **changes):
    tensors, arguments = inputs(
        **{"dtype": dtype, "H": 2, "kv_heads": 1, "N1": N, "N2": N, "dk": 64, "dh": 64, **changes}
    )
    return tensors, arguments


def test_the_kernels_are_chosen_by_themselves():
    tensors, _ = inputs()
    choice = dispatch.choose(tensors["query"], tensors["key"], tensors["value"])
    assert choice == ("triton", "the fused kernels cover this call")


@pytest.mark.parametrize("degree", ["row", "symmetric"])
@pytest.mark.parametrize("mask", ["none", "causal", "column"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_4096_tokens(dtype, mask, degree):
    tensors, arguments = large(dtype)
    arguments |= {"degree": degree, **masks(mask, N1=N, N2=N, dtype=dtype)}
    assert_near(run("triton", tensors, arguments), run("eager", double(tensors), double(arguments)), dtype, factor=4)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_4096_tokens_with_dropout(monkeypatch, dtype):
    both_with_one_mask(monkeypatch)
    tensors, arguments = large(dtype)
    arguments |= {"is_causal": True, "dropout_p": 0.1}
    assert_near(run("triton", tensors, arguments), run("eager", double(tensors), double(arguments)), dtype, factor=4)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("width", [16, 32, 40, 64, 80, 128, 256])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_every_width(dtype, width, p):
    tensors, arguments = large(dtype, N1=333, N2=517, dk=width, dh=width, p=p)
    assert_near(run("triton", tensors, arguments), run("eager", double(tensors), double(arguments)), dtype, factor=4)


def test_a_gradient_descends():
    """The kernels' gradients, used: p and mu move to where a target was made."""
    tensors, arguments = inputs(N1=256, N2=256, dk=64, dh=64, p=1.5, mu=0.3)
    target = p_laplacian_attention(**tensors, **arguments).detach()
    tensors["p"], tensors["mu"] = (
        torch.full_like(tensors[name], start, requires_grad=True) for name, start in (("p", 2.5), ("mu", 0.1))
    )
    optimiser = torch.optim.Adam([tensors["p"], tensors["mu"]], lr=0.05)
    losses = []
    for _ in range(50):
        loss = (p_laplacian_attention(**tensors, **arguments) - target).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_training_step(backend):
    tensors, arguments = large(torch.bfloat16, N1=256, N2=256)
    leaf = tensors["query"].clone().requires_grad_()

    def step(query):
        return p_laplacian_attention(**{**tensors, "query": query}, **arguments).float().square().mean()

    found = [
        torch.autograd.grad(function(leaf), leaf)[0]
        for function in (step, torch.compile(step, backend=backend, fullgraph=True))
    ]
    assert error(found[1], found[0]) < TOLERANCE[torch.bfloat16][1]


@pytest.mark.parametrize("degree", ["row", "symmetric"])
def test_memory_is_linear(degree):
    """Twice the tokens take at most a little more than twice the memory, forward and backward."""
    peaks = []
    for tokens in (N, 2 * N):
        tensors, arguments = large(torch.bfloat16, N1=tokens, N2=tokens)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run("triton", tensors, {**arguments, "degree": degree})
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 2.2 * peaks[0]


def test_the_same_bits_in_deterministic_mode():
    tensors, arguments = large(torch.bfloat16, N1=1000, N2=1000)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run("triton", tensors, arguments) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[name], second[name]) for name in first)
