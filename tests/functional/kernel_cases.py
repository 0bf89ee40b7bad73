"""What the tests of the fused kernels share: inputs, a call of either path with gradients, and how near they are."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from padapter.functional import p_laplacian, p_laplacian_attention
from padapter.functional.dispatch import forced
from padapter.functional.fused import dropout, launch
from padapter.functional.fused.dropout import dropout_mask

#: Kernels run on the CPU in Triton's interpreter, or natively where there is a GPU (see tests/conftest.py).
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

#: Native kernels, where tensors are on the processor.
NATIVE = ["native"] if DEVICE.type == "cpu" else []
kernels = pytest.mark.parametrize("kernel", ["triton", *NATIVE])

#: Largest error of a context and of a gradient, relative to the largest number, by the dtype of the model. In half
#: precision the factors of every product of matrices are rounded, as in other fused attention.
TOLERANCE = {torch.float32: (5e-6, 2e-5), torch.float16: (2e-3, 5e-3), torch.bfloat16: (1.5e-2, 3e-2)}


def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, so that few numbers make several of them, with ends that are no multiple of a block.

    And the interpreter, which takes half of its time to prepare Triton's language anew for every function that a kernel
    calls, though it is prepared already, does that once per kernel. Where GPUs round to bfloat16 it cuts digits off, so
    that every sum of such numbers is too small; here it rounds.
    """
    if not INTERPRETED:
        return
    monkeypatch.setattr(launch, "block_sizes", lambda *_: (16, 16, 4, 1))
    from triton.runtime import interpreter

    prepare, convert, language, prepared = interpreter._patch_lang, interpreter._convert_float, interpreter.tl, {}

    def once(function):
        seen = frozenset(name for name, it in function.__globals__.items() if it is language or it is language.core)
        if seen not in prepared:
            outermost = not prepared
            prepared[seen] = scope = prepare(function)
            if outermost:
                restore = scope.restore
                scope.restore = lambda: (prepared.clear(), restore())
        return prepared[seen]

    def rounded(number, source, target, mode):
        if (source, target) != (language.float32, language.bfloat16):
            return convert(number, source, target, mode)
        return torch.from_numpy(number.copy()).bfloat16().view(torch.int16).numpy()

    monkeypatch.setattr(interpreter, "_patch_lang", once)
    monkeypatch.setattr(interpreter, "_convert_float", rounded)


def inputs(
    *,
    dtype: torch.dtype = torch.float32,
    B: int = 1,
    H: int = 2,
    kv_heads: int = 1,
    N1: int = 20,
    N2: int = 19,
    dk: int = 32,
    dh: int = 32,
    p: float = 1.5,
    mu: float = 0.1,
    factor: bool = True,
    node_query: bool = True,
    device: torch.device = DEVICE,
    seed: int = 0,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors that want a gradient, and further arguments."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    tensors = {"query": draw(B, H, N1, dk), "key": draw(B, kv_heads, N2, dk), "value": draw(B, kv_heads, N2, dh)}
    if node_query or dk != dh:
        tensors["node_query"] = draw(B, H, N1, dh)
    spread = torch.linspace(0, 0.2, H, device=device)
    tensors["p"] = p + spread
    tensors["mu"] = mu + (spread if mu > 0 else 0 * spread)
    matrices = torch.randn(H, dh, dh, generator=generator) / dh**0.5
    return tensors, {"metric_factor": matrices.to(device)} if factor else {}


def masks(name: str, *, B: int = 1, H: int = 2, N1: int = 20, N2: int = 19, dtype: torch.dtype = torch.float32) -> dict:
    """Mask arguments by name; "bool" and "added" hold a row without any key."""
    keep = torch.rand(B, 1, N1, N2, generator=torch.Generator().manual_seed(1)) > 0.4
    keep[0, 0, 2] = False
    added = torch.randn(1, H, N1, N2, generator=torch.Generator().manual_seed(2)).masked_fill(~keep[:1], -torch.inf)
    lowest = torch.zeros(B, 1, 1, N2).index_fill(3, torch.arange(3), torch.finfo(dtype).min)
    column = torch.ones(B, 1, 1, N2, dtype=torch.bool).index_fill(3, torch.arange(N2 - 3, N2), False)
    return {
        "none": {},
        "bool": {"attention_mask": keep.to(DEVICE)},
        "column": {"attention_mask": column.to(DEVICE)},
        "two dimensions": {"attention_mask": keep[0, 0].to(DEVICE)},
        "added": {"attention_mask": added.to(DEVICE, dtype)},
        "lowest": {"attention_mask": lowest.to(DEVICE, dtype)},
        "causal": {"is_causal": True},
        "causal and bool": {"is_causal": True, "attention_mask": keep.to(DEVICE)},
    }[name]


def seed_of(number: int) -> Tensor:
    return torch.tensor([number], device=DEVICE)


def both_with_one_mask(monkeypatch: pytest.MonkeyPatch, seed: int = 2**62 + 12345) -> None:
    """Kernels get this seed, and the eager path the mask that follows from it."""

    def drop(weights: Tensor, dropout_p: float) -> Tensor:
        factor = 1 / (1 - dropout_p) if dropout_p < 1 else 0.0
        B, H, N1, N2 = weights.shape
        return weights * dropout_mask(seed_of(seed), B, H, N1, N2, dropout_p) * factor

    monkeypatch.setattr(dropout, "draw_seed", lambda device: seed_of(seed))
    monkeypatch.setattr(p_laplacian, "drop", drop)


def run(kernel: str, tensors: dict[str, Tensor], arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The context under "context", and the gradient of every tensor under its name."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    with forced(kernel):
        context = p_laplacian_attention(**leaves, **arguments)
    gradients = torch.autograd.grad(context, list(leaves.values()), upstream_of(context), allow_unused=True)
    found = {name: tensor for name, tensor in zip(leaves, gradients, strict=True) if tensor is not None}
    return {"context": context.detach(), **found}


def upstream_of(context: Tensor) -> Tensor:
    return torch.randn(context.shape, generator=torch.Generator().manual_seed(3)).to(context)


def sizes_of_sums(tensors: dict[str, Tensor], arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Of the gradients of p and mu, each (H,): the root of the squares of what the queries add to it.

    What they add may cancel, and rounding errors are no smaller for it. Tensors are float64: differences are taken.
    """
    step, found = 1e-6, {}
    for name in ("p", "mu"):
        near = {**tensors, name: tensors[name] + step}
        with torch.no_grad(), forced("eager"):
            before, after = (p_laplacian_attention(**it, **arguments) for it in (tensors, near))
        added = ((after - before) * upstream_of(before)).sum(-1) / step  # (B, H, N1)
        found[name] = added.square().sum((0, 2)).sqrt()
    return found


def double(tensors: dict[str, Any]) -> dict[str, Any]:
    return {
        name: it.double() if isinstance(it, Tensor) and it.is_floating_point() else it for name, it in tensors.items()
    }


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected number."""
    largest = expected.double().abs().max().item()
    return (actual.double() - expected.double()).abs().max().item() / (largest or 1.0)


def assert_near(
    actual: dict[str, Tensor],
    expected: dict[str, Tensor],
    dtype: torch.dtype,
    factor: float = 1.0,
    sums: dict[str, Tensor] | None = None,
) -> None:
    """Every context and gradient of ``expected`` is there, finite, and within TOLERANCE.

    Relative to its largest number, or to its ``sums`` if these are known, see `sizes_of_sums`.
    """
    context, gradient = TOLERANCE[dtype]
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert bool(actual[name].isfinite().all()), name
        if sums is not None and name in sums:
            found = ((actual[name].double() - tensor).abs() / sums[name]).max().item()
            # What is summed for p is multiplied by logarithms, which are larger than 1.
            assert found <= 2 * factor * gradient, f"{name}: {found:.1e}"
            continue
        found = error(actual[name], tensor)
        # Those of p and mu sum over all pairs, and mostly cancel.
        limit = context if name == "context" else 3 * gradient if name in ("p", "mu") else gradient
        assert found <= factor * limit, f"{name}: {found:.1e}"
