"""p-Laplacian message passing on the attention graph, in the form that a model runs.

Since ``||sqrt(A) x||^(p-2) = A^((p-2)/2) ||x||^(p-2)``, equation (7) is

    Mbar_ij = M_ij^(p/2) delta_ij^(p-2),    delta_ij = || F_i / sqrt(D_i) - F_j / sqrt(D_j) ||

So nothing larger than the (N1, N2) attention scores is made, and everything stays in log space until one
stabilised exponential per step, as in a softmax. `reference` holds the definition.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from padapter.functional._arguments import Degree, check_dropout, check_p_laplacian
from padapter.functional.dispatch import choose
from padapter.functional.graph import AttentionGraph, GraphArguments, Step, attention_graph, drop, without_autocast

if TYPE_CHECKING:
    from typing_extensions import Unpack


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
    steps: int = 1,
    update_values: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    r"""Attend by p-Laplacian message passing (equations 5-8), before the output projection.

    Per head, with ``M = softmax(scale Q K^T + mask)`` between query nodes (features F_i) and value nodes
    (F_j)::

        delta_ij   = || (F_i / sqrt(D_i) - F_j / sqrt(D_j)) R ||
        Mbar_ij    = M_ij^(p/2) delta_ij^(p-2)
        alpha_i    = 1 / (sum_j Mbar_ij / D_i + 2 mu / p)            beta_i = (2 mu / p) alpha_i
        context_i  = alpha_i D_i^-1/2 sum_j Mbar_ij D_j^-1/2 v_j + beta_i F_i

    p = 2, mu = 0, degree "row" is `torch.nn.functional.scaled_dot_product_attention`. In "row" degree the
    weights of a row and its beta sum to 1.

    With K = ``steps`` > 1 this is repeated, Mbar, alpha and beta being computed anew from the features of the
    step before: ``F^(k+1) = alpha D^-1/2 Mbar D^-1/2 F^(k) + beta F^(0)`` (pGNN, ICML 2022). M itself stays that
    of the scores. With ``update_values`` value nodes move as well, by the same formula with ``M^T``. Without, they
    keep their features, and query i depends on no other query. Attention, whose output has no place for value
    nodes, leaves this open.

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
        steps: K >= 1.
        update_values: whether the value nodes move too: for encoders only, since every query then reaches every
            other. Without effect for K = 1.
        dropout_p: probability of dropping a calibrated weight (the sum's, not the normaliser's), as attention
            dropout does, anew at each step. Always applied when > 0: pass 0.0 in evaluation.

    Returns:
        (B, H, N1, dh) in value's dtype. Computed in float32 for float16 and bfloat16 (autocast is switched
        off inside), in float64 if any of the inputs is float64.

    Raises:
        ValueError: if shapes do not fit together, p < 1, mu < 0, steps < 1, the degree is unknown or dropout_p
            not in [0, 1].
    """
    check_dropout(dropout_p)
    choice = choose(
        query, key, value, node_query=node_query, attention_mask=attention_mask, metric_factor=metric_factor,
        steps=steps, dropout_p=dropout_p, scale=scale, numbers=(p, mu),
    )  # fmt: skip
    with without_autocast(query.device):
        if choice.path != "eager":
            from padapter.functional.fused.attention import fused_p_laplacian_attention
            from padapter.functional.fused.dropout import draw_seed

            least = _least_distance2(torch.float32, value.dtype, (query if node_query is None else node_query).dtype)
            return fused_p_laplacian_attention(
                query, key, value, p=p, mu=mu, least=least, node_query=node_query, metric_factor=metric_factor,
                attention_mask=attention_mask, is_causal=is_causal, scale=scale, degree=degree,
                dropout_p=dropout_p, seed=draw_seed(query.device) if dropout_p > 0.0 else None,
                native=choice.path == "native",
            )  # fmt: skip
        last = _last_step(
            query, key, value, p, mu, metric_factor, steps, update_values, dropout_p,
            node_query=node_query, attention_mask=attention_mask, is_causal=is_causal, scale=scale, degree=degree,
        )  # fmt: skip
        context = drop(last.weights, dropout_p) @ last.value
        if last.beta is not None:
            context = context + last.beta * last.query
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
    steps: int = 1,
    update_values: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute the calibrated weights of `p_laplacian_attention` instead of its context; those of the last step.

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
        steps: K.
        update_values: whether the value nodes move too.

    Returns:
        W (B, H, N1, N2) and beta (B, H, N1) in value's dtype, with ``context = W V + beta F_query``, that is
        ``W_ij = alpha_i D_i^-1/2 Mbar_ij D_j^-1/2``; V being the value nodes' features before the last step.

    Raises:
        ValueError: as `p_laplacian_attention`.
    """
    last = p_laplacian_step(
        query, key, value, p=p, mu=mu, metric_factor=metric_factor, steps=steps, update_values=update_values,
        node_query=node_query, attention_mask=attention_mask, is_causal=is_causal, scale=scale, degree=degree,
    )  # fmt: skip
    return last.weights.to(value.dtype), last.own.to(value.dtype)


def p_laplacian_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    p: float | Tensor,
    mu: float | Tensor,
    metric_factor: Tensor | None = None,
    steps: int = 1,
    update_values: bool = False,
    **graph: Unpack[GraphArguments],
) -> Step:
    """The last step of `p_laplacian_attention`, taken apart.

    Args:
        query: (B, H, N1, dk); all arguments are those of `p_laplacian_attention`.
        key: (B, Hkv, N2, dk).
        value: (B, Hkv, N2, dh).
        p: scalar or (H,).
        mu: scalar or (H,).
        metric_factor: (H, dh, dh).
        steps: K.
        update_values: whether the value nodes move too.
        **graph: see `GraphArguments`.

    Returns:
        The step in float32, or float64 if an input is.

    Raises:
        ValueError: as `p_laplacian_attention`.
    """
    with without_autocast(query.device):
        last = _last_step(query, key, value, p, mu, metric_factor, steps, update_values, 0.0, **graph)
    own = torch.zeros_like(last.weights[..., 0]) if last.beta is None else last.beta.squeeze(-1)
    return Step(last.weights, own, last.value, last.query)


class _LastStep(NamedTuple):
    """What the last step sums: ``context = W V + beta Q``."""

    weights: Tensor  # (B, H, N1, N2)
    beta: Tensor | None  # (B, H, N1, 1), None for mu = 0
    value: Tensor  # (B, H, N2, dh), the value nodes before the last step
    query: Tensor  # (B, H, N1, dh), the query nodes before the first


def _last_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    p: float | Tensor,
    mu: float | Tensor,
    metric_factor: Tensor | None,
    steps: int,
    update_values: bool,
    dropout_p: float,
    **arguments: Unpack[GraphArguments],
) -> _LastStep:
    graph = attention_graph(query, key, value, **arguments)
    check_p_laplacian(*graph.value.shape[1::2], p=p, mu=mu, metric_factor=metric_factor, steps=steps)
    node_query = arguments.get("node_query")
    least = _least_distance2(graph.value.dtype, value.dtype, (query if node_query is None else node_query).dtype)
    p_h = _per_head(p, graph.log_M)
    needs_distances = isinstance(p, Tensor) or p != 2.0
    restart = None if not isinstance(mu, Tensor) and mu == 0.0 else 2 * _per_head(mu, graph.log_M) / p_h
    queries, values = graph.query, graph.value
    for step in range(1, steps + 1):
        log_Mbar = graph.log_M
        if needs_distances:
            normed = values if graph.inverse_root_D is None else values * graph.inverse_root_D
            log_distance2 = _log_distance2(queries, normed, metric_factor, least)
            log_Mbar = (p_h / 2) * log_Mbar + (p_h / 2 - 1) * log_distance2
        if graph.removed is not None:
            log_Mbar = log_Mbar.masked_fill(graph.removed, -torch.inf)
        weights, beta = _normalise(log_Mbar, restart)
        if graph.inverse_root_D is not None:
            weights = weights * graph.inverse_root_D.mT
        if step < steps:
            moved = drop(weights, dropout_p) @ values
            if update_values:
                values = _moved_values(graph, log_Mbar, restart, queries, dropout_p)
            queries = moved if beta is None else moved + beta * graph.query
    return _LastStep(weights, beta, values, graph.query)


def _moved_values(
    graph: AttentionGraph, log_Mbar: Tensor, restart: Tensor | None, queries: Tensor, dropout_p: float
) -> Tensor:
    """Equation (8) for the value nodes: the same Mbar, normalised along its columns; (B, H, N2, dh)."""
    log_Mbar = log_Mbar.mT
    if graph.inverse_root_D is None:
        weights, beta = _normalise(log_Mbar, restart)
    else:
        # alpha_j D_j^-1/2 Mbar_ij with alpha_j = 1 / (sum_i Mbar_ij / D_j + restart)
        weights, beta = _normalise(log_Mbar + 2 * graph.inverse_root_D.log(), restart)
        weights = weights / graph.inverse_root_D
    moved = drop(weights, dropout_p) @ queries
    return moved if beta is None else moved + beta * graph.value


def _normalise(log_Mbar: Tensor, restart: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return ``Mbar / (sum Mbar + restart)`` and ``restart / (sum Mbar + restart)``, with restart = 2 mu / p.

    For a query node this is alpha_i Mbar_ij and beta_i: D_i = 1 in both degrees, its edges being a row of a
    softmax.
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


def _least_distance2(computation: torch.dtype, *features: torch.dtype) -> float:
    """What delta^2 must exceed for its gradient to be representable in the dtypes of the inputs."""
    # It grows like 1 / delta, which float16 cannot hold for delta below about 1 / 65504.
    largest = min(torch.finfo(dtype).max for dtype in features)
    return max(math.sqrt(torch.finfo(computation).tiny), (16 / largest) ** 2)


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
