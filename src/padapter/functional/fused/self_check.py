"""Trust in kernels: before the first use on a GPU they are compared with the eager path there, on a small problem."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

#: Largest error of contexts and gradients relative to the largest number, where float32 and where half precision runs.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


@functools.cache
def failure(device: torch.device, dtype: torch.dtype, dk: int, dh: int, dropout: bool = False) -> str | None:
    """Compare context and gradients of the Triton kernels with those of the eager path in float64; warn if they differ.

    Sizes are no multiples of blocks, and there are a mask, a causal one as well, groups of heads and a metric. Takes as
    long as compiling the kernels, which the call that asks would have to do anyway.

    Args:
        device: where to compare.
        dtype: of query, key and value.
        dk: width of queries and keys.
        dh: width of values.
        dropout: whether weights are dropped, which other variants of the kernels do.

    Returns:
        One clause that says what is wrong, for people, or None.
    """
    found = _failure(device, dtype, dk, dh, dropout)
    if found is not None:
        logger.warning(
            "p-Laplacian attention of %s, heads %d and %d wide, runs eagerly on %s: %s", dtype, dk, dh, device, found
        )
    return found


def _failure(device: torch.device, dtype: torch.dtype, dk: int, dh: int, dropout: bool) -> str | None:
    try:
        fused, eager = _results(device, dtype, dk, dh, dropout)
    except Exception as problem:  # whatever a compiler or driver throws: the eager path still works
        said = str(problem).partition("\n")[0]
        return f"the kernels fail their first comparison ({type(problem).__name__}: {said})"
    for name, expected in eager.items():
        error = float((fused[name].double() - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
        if not error <= _TOLERANCE[dtype]:
            return f"the kernels do not agree with the eager path on this device ({name} is off by {error:.1e})"
    return None


def _results(
    device: torch.device, dtype: torch.dtype, dk: int, dh: int, dropout: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    from padapter.functional.fused.attention import fused_p_laplacian_attention
    from padapter.functional.fused.dropout import dropout_mask
    from padapter.functional.graph import without_autocast
    from padapter.functional.p_laplacian import p_laplacian_weights

    generator = torch.Generator(device="cpu").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(device, dtype)

    given = {"query": draw(1, 2, 70, dk), "key": draw(1, 1, 75, dk), "value": draw(1, 1, 75, dh)}
    given["node_query"] = draw(1, 2, 70, dh)
    numbers = {"p": torch.tensor([1.5, 2.5], device=device), "mu": torch.tensor([0.1, 0.0], device=device)}
    mask = (torch.rand(1, 1, 70, 75, generator=generator, device="cpu") > 0.2).to(device)
    mask[..., 0] = True
    metric = (torch.randn(2, dh, dh, generator=generator, device="cpu") / dh**0.5).to(device)
    upstream = draw(1, 2, 70, dh)
    seed = torch.tensor([2**40 + 1], device=device) if dropout else None  # the caller's generator is the caller's
    dropout_p = 0.2 if dropout else 0.0
    factor = torch.ones(()) if seed is None else dropout_mask(seed, 1, 2, 70, 75, dropout_p) / (1 - dropout_p)
    shared: dict[str, Any] = {"metric_factor": metric, "attention_mask": mask, "is_causal": True}
    fixed: dict[str, Any] = {
        "scale": None,
        "degree": "row",
        "dropout_p": dropout_p,
        "seed": seed,
        "least": max(1e-19, (16 / torch.finfo(dtype).max) ** 2),
        "native": False,
    }

    def fused(**tensors: Any) -> Tensor:
        return fused_p_laplacian_attention(**tensors, **shared, **fixed)

    def eager(**tensors: Any) -> Tensor:
        weights, beta = p_laplacian_weights(**tensors, **shared)
        return (weights * factor.to(weights)) @ tensors["value"] + beta.unsqueeze(-1) * tensors["node_query"]

    found: list[dict[str, Tensor]] = []
    with torch.inference_mode(False), torch.enable_grad(), without_autocast(device):
        for attend in (fused, eager):  # of float64 tensors, which no kernel takes
            tensors = {
                name: (it.double() if attend is eager else it.clone()).requires_grad_()
                for name, it in {**given, **numbers}.items()
            }
            context = attend(**tensors)
            gradients = torch.autograd.grad(context, list(tensors.values()), upstream.to(context.dtype))
            found.append({"context": context.detach(), **dict(zip(tensors, gradients, strict=True))})
    return found[0], found[1]
