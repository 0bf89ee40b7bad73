"""p-Laplacian message passing on the attention graph, in the form that a model runs.

Since ``||sqrt(A) x||^(p-2) = A^((p-2)/2) ||x||^(p-2)``, equation (7) is

    Mbar_ij = M_ij^(p/2) delta_ij^(p-2),    delta_ij = || F_i / sqrt(D_i) - F_j / sqrt(D_j) ||

So nothing larger than the (N1, N2) attention scores is made, and everything stays in log space until one
stabilised exponential, as in a softmax. `reference` holds the definition.
"""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from padapter.functional._arguments import Degree, check_arguments


def p_laplacian_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    p: float | Tensor,
    mu: float | Tensor,
    node_query: Tensor | None = None,
    metric_factor: Tensor | None = None,
    attention_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    degree: Degree = "row",
    dropout_p: float = 0.0,
) -> Tensor:
    r"""Attend by one step of p-Laplacian message passing (equations 5-8), before the output projection.

    Per head, with ``M = softmax(scale Q K^T + mask)`` between query nodes (features F_i) and value nodes
    (F_j)::

        delta_ij   = || (F_i / sqrt(D_i) - F_j / sqrt(D_j)) R ||
        Mbar_ij    = M_ij^(p/2) delta_ij^(p-2)
        alpha_i    = 1 / (sum_j Mbar_ij / D_i + 2 mu / p)            beta_i = (2 mu / p) alpha_i
        context_i  = alpha_i D_i^-1/2 sum_j Mbar_ij D_j^-1/2 v_j + beta_i F_i

    p = 2, mu = 0, degree "row" is `torch.nn.functional.scaled_dot_product_attention`. In "row" degree the
    weights of a row and its beta sum to 1.

    Where the equations have no value, or none a computer can hold, these conventions make forward and
    backward finite:

    * A row without any attended key has ``M = 0``: its context is F_i if mu > 0 and 0 if mu = 0.
    * ``delta^2 = |x|^2 + |y|^2 - 2 x.y`` is known to a few eps of ``|x|^2 + |y|^2``. It is held above that
      (and above an absolute limit: 1e-19 in float32, 6e-8 for float16 features, whose gradients could not
      hold 1 / delta) by a constant. So equal features are close, not infinitely close, and send no gradient
      through their distance. Any other pair follows the equations exactly.
    * Column degrees D_j are held above eps^2: a key nobody attends to contributes nothing.

    Args:
        query: (B, H, N1, dk).
        key: (B, Hkv, N2, dk), Hkv dividing H; consecutive query heads share a key head.
        value: (B, Hkv, N2, dh).
        p: >= 1, a number or a tensor of shape () or (H,); gradients flow. p < 2 favours near nodes, p > 2
            distant ones. The values of a tensor are not checked (that would wait for the device).
        mu: >= 0, a number or a tensor of shape () or (H,); gradients flow. Weight of a query node's own
            features.
        node_query: (B, H, N1, dh), the query nodes' features. Default: query (then dk must be dh). RoPE
            models pass the query before rotation here.
        metric_factor: (H, dh, dh), R with ``R R^T = Wo Wo^T``, from `padapter.functional.metric_factor`.
            Default: the identity, distances of the features themselves.
        attention_mask: broadcastable to (B, H, N1, N2). Boolean: True = attend. Floating point: added to the
            scores; -inf removes a key, finite values however negative are added literally (a row of them is
            still attended).
        is_causal: query i attends to keys 0..i (aligned top left, as in torch); may be combined with a mask.
        scale: factor of the scores. Default: ``1 / sqrt(dk)``.
        degree: "row" takes D = 1: causal, and the same with or without a key/value cache. "symmetric" takes D
            from the graph, literally, so D_j sums M over *all* N1 queries: for encoders only. Padding queries
            count as well, unless the mask removes every key from their rows.
        dropout_p: probability of dropping a calibrated weight (the sum's, not the normaliser's), as attention
            dropout does. Always applied when > 0: pass 0.0 in evaluation.

    Returns:
        (B, H, N1, dh) in value's dtype. Computed in float32 for float16 and bfloat16 (autocast is switched
        off inside), in float64 if any of the inputs is float64.

    Raises:
        ValueError: if shapes do not fit together, p < 1, mu < 0, the degree is unknown or dropout_p not in
            [0, 1].
    """
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p: got {dropout_p}, accepted is a number from 0 to 1")
    node_query = check_arguments(
        query,
        key,
        value,
        p=p,
        mu=mu,
        node_query=node_query,
        metric_factor=metric_factor,
        attention_mask=attention_mask,
        degree=degree,
    )
    with _without_autocast(query.device):
        nodes = _Nodes.gather(query, key, value, node_query)
        weights, beta = _calibrate(nodes, p, mu, metric_factor, attention_mask, is_causal, scale, degree)
        if dropout_p > 0.0:
            weights = torch.nn.functional.dropout(weights, dropout_p)
        context = weights @ nodes.value
        if beta is not None:
            context = context + beta * nodes.node_query
    return context.to(value.dtype)


def p_laplacian_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    p: float | Tensor,
    mu: float | Tensor,
    node_query: Tensor | None = None,
    metric_factor: Tensor | None = None,
    attention_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    degree: Degree = "row",
) -> tuple[Tensor, Tensor]:
    """Compute the calibrated weights of `p_laplacian_attention` instead of its context.

    Args:
        query: (B, H, N1, dk); all arguments are those of `p_laplacian_attention`.
        key: (B, Hkv, N2, dk).
        value: (B, Hkv, N2, dh).
        p: scalar or (H,).
        mu: scalar or (H,).
        node_query: (B, H, N1, dh).
        metric_factor: (H, dh, dh).
        attention_mask: broadcastable to (B, H, N1, N2).
        is_causal: whether query i attends to keys 0..i only.
        scale: factor of the scores.
        degree: "row" or "symmetric".

    Returns:
        W (B, H, N1, N2) and beta (B, H, N1) in value's dtype, with ``context = W V + beta F_query``, that is
        ``W_ij = alpha_i D_i^-1/2 Mbar_ij D_j^-1/2``.

    Raises:
        ValueError: as `p_laplacian_attention`.
    """
    node_query = check_arguments(
        query,
        key,
        value,
        p=p,
        mu=mu,
        node_query=node_query,
        metric_factor=metric_factor,
        attention_mask=attention_mask,
        degree=degree,
    )
    with _without_autocast(query.device):
        nodes = _Nodes.gather(query, key, value, node_query)
        weights, beta = _calibrate(nodes, p, mu, metric_factor, attention_mask, is_causal, scale, degree)
    own = torch.zeros_like(weights[..., 0]) if beta is None else beta.squeeze(-1)
    return weights.to(value.dtype), own.to(value.dtype)


class _Nodes(NamedTuple):
    """The inputs with all H heads and in the dtype of the computation."""

    query: Tensor  # (B, H, N1, dk)
    key: Tensor  # (B, H, N2, dk)
    value: Tensor  # (B, H, N2, dh)
    node_query: Tensor  # (B, H, N1, dh)
    least_distance2: float  # what delta^2 must exceed for its gradient to be representable in the inputs' dtypes

    @classmethod
    def gather(cls, query: Tensor, key: Tensor, value: Tensor, node_query: Tensor) -> _Nodes:
        dtype = torch.float32
        for tensor in (query, key, value, node_query):
            dtype = torch.promote_types(dtype, tensor.dtype)
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        # A distance's gradient grows like 1 / delta, which float16 cannot hold for delta below about 1 /
        # 65504.
        largest = min(torch.finfo(value.dtype).max, torch.finfo(node_query.dtype).max)
        least = max(math.sqrt(torch.finfo(dtype).tiny), (16 / largest) ** 2)
        return cls(query.to(dtype), key.to(dtype), value.to(dtype), node_query.to(dtype), least)


def _calibrate(
    nodes: _Nodes,
    p: float | Tensor,
    mu: float | Tensor,
    metric_factor: Tensor | None,
    attention_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    degree: Degree,
) -> tuple[Tensor, Tensor | None]:
    """Return W (B, H, N1, N2) and beta (B, H, N1, 1), the latter None for mu = 0."""
    log_M, removed = _log_attention(nodes.query, nodes.key, attention_mask, is_causal, scale)
    inverse_root_D = _inverse_root_degrees(log_M, removed) if degree == "symmetric" else None  # (B, H, N2, 1)

    p_h = _per_head(p, log_M)
    if isinstance(p, Tensor) or p != 2.0:
        values = nodes.value if inverse_root_D is None else nodes.value * inverse_root_D
        log_distance2 = _log_distance2(nodes.node_query, values, metric_factor, nodes.least_distance2)
        log_Mbar = (p_h / 2) * log_M + (p_h / 2 - 1) * log_distance2
    else:
        log_Mbar = log_M
    if removed is not None:
        log_Mbar = log_Mbar.masked_fill(removed, -torch.inf)

    restart = None if not isinstance(mu, Tensor) and mu == 0.0 else 2 * _per_head(mu, log_M) / p_h
    weights, beta = _normalise(log_Mbar, restart)
    if inverse_root_D is not None:
        weights = weights * inverse_root_D.mT
    return weights, beta


def _normalise(log_Mbar: Tensor, restart: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return ``Mbar / (sum Mbar + restart)`` and ``restart / (sum Mbar + restart)``, with restart = 2 mu / p.

    D_i = 1 in both degrees, a query node's edges being a row of a softmax; so this is alpha_i Mbar_ij, and
    beta_i.
    """
    largest = log_Mbar.detach().amax(dim=-1, keepdim=True)
    if restart is not None:
        largest = torch.maximum(largest, restart.detach().log())
    largest = largest.masked_fill(largest == -torch.inf, 0.0)
    Mbar = (log_Mbar - largest).exp()
    total = Mbar.sum(dim=-1, keepdim=True)
    if restart is None:
        return Mbar / total.masked_fill(total == 0, 1.0), None
    # Never log(restart): it has no gradient at mu = 0, where this one, exp(-largest), must fit into mu's float32.
    # The clamp leaves every restart >= 1e-19 as it is, since largest >= log(restart).
    limit = math.log(torch.finfo(torch.float32).max) / 2
    restart = restart * (-largest).clamp(max=limit).exp()
    total = total + restart
    empty = total == 0  # no key and no restart: both zero, and no gradient across the jump to beta = 1
    total = total.masked_fill(empty, 1.0)
    return Mbar / total, (restart / total).masked_fill(empty, 0.0)


def _log_attention(
    query: Tensor, key: Tensor, attention_mask: Tensor | None, is_causal: bool, scale: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return log M (B, H, N1, N2), and where keys are removed, log M being 0 there; None if none can be."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * scale) @ key.mT
    removed: Tensor | None = None
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        removed = ~attention_mask
    elif attention_mask is not None:
        attention_mask = attention_mask.to(scores.dtype)
        scores = scores + attention_mask
        removed = attention_mask == -torch.inf
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        removed = later if removed is None else removed | later
    if removed is None:
        return scores.log_softmax(dim=-1), None
    # broadcast over the keys first: a mask may have one column for all of them
    removed = removed.expand(*removed.shape[:-1], scores.shape[-1]) if removed.dim() else removed
    empty = removed.all(dim=-1, keepdim=True) if removed.dim() else removed
    scores = scores.masked_fill(removed, -torch.inf).masked_fill(empty, 0.0)
    # 0 instead of -inf: an infinity times a zero gradient would be NaN in the backward pass of p * log M.
    return scores.log_softmax(dim=-1).masked_fill(removed, 0.0), removed


def _inverse_root_degrees(log_M: Tensor, removed: Tensor | None) -> Tensor:
    M = log_M.exp()
    if removed is not None:
        M = M.masked_fill(removed, 0.0)
    least = torch.finfo(M.dtype).eps ** 2
    return M.sum(dim=-2).clamp(min=least).rsqrt().unsqueeze(-1)  # (B, H, N2, 1)


def _log_distance2(x: Tensor, y: Tensor, metric_factor: Tensor | None, least: float) -> Tensor:
    """Return ``log |x_i - y_j|^2`` (B, H, N1, N2) of rows x (B, H, N1, dh) and y (B, H, N2, dh), behind R."""
    if metric_factor is not None:
        R = metric_factor.to(x.dtype)
        x, y = x @ R, y @ R
    sizes = x.square().sum(dim=-1).unsqueeze(-1) + y.square().sum(dim=-1).unsqueeze(-2)
    distance2 = sizes - 2 * (x @ y.mT)
    # The rounding error of a sum of dh products grows like sqrt(dh); a difference below it says nothing.
    few = 4 + math.sqrt(x.shape[-1])
    floor = sizes.detach() * (few * torch.finfo(x.dtype).eps) + least
    return torch.where(distance2 > floor, distance2, floor).log()


def _per_head(parameter: float | Tensor, like: Tensor) -> Tensor:
    if isinstance(parameter, Tensor):
        return parameter.to(device=like.device, dtype=like.dtype).reshape(1, -1, 1, 1)
    return torch.full((1, 1, 1, 1), float(parameter), dtype=like.dtype, device=like.device)


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast would take distances in bfloat16 and lose them to cancellation."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
