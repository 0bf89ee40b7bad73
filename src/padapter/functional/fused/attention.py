"""`p_laplacian_attention` on the fused operators: what comes before the kernels, in plain PyTorch with its autograd."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from padapter.functional._arguments import Degree, check_graph, check_p_laplacian
from padapter.functional.fused.directly import p_laplacian_context
from padapter.functional.fused.operators import attention_degrees


def fused_p_laplacian_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    p: float | Tensor,
    mu: float | Tensor,
    least: float,
    node_query: Tensor | None,
    metric_factor: Tensor | None,
    attention_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    degree: Degree,
    dropout_p: float,
    seed: Tensor | None,
    native: bool,
) -> Tensor:
    """Compute `padapter.functional.p_laplacian_attention` for one step, without anything of size N1 x N2.

    Call it inside `without_autocast`, and only where `padapter.functional.dispatch.choose` says so.

    Args:
        query: (B, H, N1, dk).
        key: (B, Hkv, N2, dk).
        value: (B, Hkv, N2, dh).
        p: scalar or (H,).
        mu: scalar or (H,).
        least: what delta^2 is held above, absolutely.
        node_query: (B, H, N1, dh) or None.
        metric_factor: (H, dh, dh) or None.
        attention_mask: broadcastable to (B, H, N1, N2), or None.
        is_causal: whether query i attends to keys 0..i only.
        scale: factor of the scores.
        degree: "row" or "symmetric".
        dropout_p: probability of dropping a weight.
        seed: (1,) int64, which decides which ones; None where dropout_p is 0.
        native: whether the C library computes it; else Triton's kernels do.

    Returns:
        (B, H, N1, dh) in value's dtype.

    Raises:
        ValueError: as `p_laplacian_attention`.
    """
    nodes = check_graph(query, key, value, node_query=node_query, attention_mask=attention_mask, degree=degree)
    check_p_laplacian(query.shape[1], value.shape[3], p=p, mu=mu, metric_factor=metric_factor, steps=1)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    mask = _four_dimensional(attention_mask)
    heads, width = query.shape[1], value.shape[-1]

    summed: Tensor = value  # D^-1/2 v, what is summed
    exact: Tensor = value  # the same, unrounded, of which distances are taken
    if degree == "symmetric":
        D, _, _ = attention_degrees(query, key, mask, scale, is_causal, native)
        least_degree = torch.finfo(torch.float32).eps ** 2
        inverse_root = D.clamp(min=least_degree).rsqrt().unsqueeze(-1)  # (B, H, N2, 1)
        exact = _every_head(value, heads).float() * inverse_root
        # D^-1/2 of a key that nobody attends to is beyond float16, but not beyond bfloat16.
        summed = exact.to(torch.bfloat16) if value.dtype == torch.bfloat16 and not native else exact

    p_h = _per_head(p, query, heads)
    distances = isinstance(p, Tensor) or p != 2.0
    near_query: Tensor | None = None
    near_value: Tensor | None = None
    constant = None if metric_factor is None or metric_factor.requires_grad else metric_factor.float()
    if distances and metric_factor is not None and constant is None:
        R = metric_factor.float()  # a gradient of R is PyTorch's business
        near_query, near_value = nodes.float() @ R, _every_head(exact, heads).float() @ R
    elif distances:
        near_query, near_value = _near(nodes, exact, rounded=constant is None)
        near_query = None if near_query is nodes else near_query
        near_value = None if near_value is summed else near_value
    restart = None
    if isinstance(mu, Tensor) or mu != 0.0:
        restart = 2 * _per_head(mu, query, heads) / p_h
    relative = (4 + math.sqrt(width)) * torch.finfo(torch.float32).eps
    context = p_laplacian_context(
        query, key, summed, node_query, near_query, near_value, p_h, restart, constant if distances else None, mask,
        seed, scale, is_causal, distances, relative, least, float(dropout_p), native,
    )  # fmt: skip
    return context.to(value.dtype)


def _near(nodes: Tensor, value: Tensor, *, rounded: bool) -> tuple[Tensor, Tensor]:
    """The features that distances are taken of: as they are, or both in float32.

    Without a metric, behind which they are float32 anyway, kernels multiply them as they are. Float16 could not hold
    ``1 / delta^2`` times a gradient, which the backward pass multiplies with them, and the two must be of one dtype.
    """
    if not rounded or nodes.dtype == value.dtype != torch.float16:
        return nodes, value
    return nodes.float(), value.float()


def _every_head(shared: Tensor, heads: int) -> Tensor:
    groups = heads // shared.shape[1]
    return shared.repeat_interleave(groups, dim=1) if groups > 1 else shared


def _per_head(parameter: float | Tensor, like: Tensor, heads: int) -> Tensor:
    if isinstance(parameter, Tensor):
        return parameter.to(device=like.device, dtype=torch.float32).reshape(-1).expand(heads).contiguous()
    return torch.full((heads,), float(parameter), dtype=torch.float32, device=like.device)


def _four_dimensional(mask: Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    if mask.dtype == torch.float64:
        mask = mask.float()
    return mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
