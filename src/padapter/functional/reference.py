"""Equations (5)-(9), word for word: the definition that the fast form must agree with.

Written to be read beside the paper (AAAI 2024, arXiv 2312.10613), not to be run on a model: float64
throughout, one batch row and one head at a time, the whole (N1+N2) x (N1+N2) graph in memory, one difference
vector per edge, and no epsilon anywhere. Where an equation divides by zero the convention of
`p_laplacian_attention` is stated; two equal features joined by an edge have no value here for p < 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from padapter.functional._arguments import Degree, check_graph, check_p_laplacian


class Messages(NamedTuple):
    """One graph after equation (7): what equation (8) needs to update any features on it."""

    Mbar: Tensor  # (n, n)
    D: Tensor  # (n,)
    alpha: Tensor  # (n,)
    beta: Tensor  # (n,)


def adjacency(M: Tensor) -> Tensor:
    """Build the bipartite graph of query and value nodes, ``A = [[0, M], [M^T, 0]]`` (equation 5).

    Args:
        M: (N1, N2) attention probabilities.

    Returns:
        (N1 + N2, N1 + N2).
    """
    N1, N2 = M.shape
    return torch.cat([torch.cat([M.new_zeros(N1, N1), M], dim=1), torch.cat([M.mT, M.new_zeros(N2, N2)], dim=1)])


def messages(A: Tensor, F: Tensor, p: Tensor, mu: Tensor, degree: Degree) -> Messages:
    """Compute the weights of p-Laplacian message passing (equation 7).

    Args:
        A: (n, n) adjacency.
        F: (n, d) node features.
        p: scalar.
        mu: scalar.
        degree: "symmetric" takes D from A, "row" takes D = 1.

    Returns:
        Mbar, the degrees D, alpha and beta. A node without edges has Mbar = 0; its alpha and beta are 0 and 1
        for mu > 0, 0 and 0 for mu = 0.
    """
    D = A.sum(dim=1) if degree == "symmetric" else A.new_ones(len(A))
    i, j = A.nonzero(as_tuple=True)  # where A is 0, so is Mbar
    A_ij = A[i, j]
    difference = (A_ij / D[i]).sqrt()[:, None] * F[i] - (A_ij / D[j]).sqrt()[:, None] * F[j]
    Mbar = torch.zeros_like(A).index_put((i, j), A_ij * difference.norm(dim=1) ** (p - 2))

    connected = A.sum(dim=1) > 0
    D_i = torch.where(connected, D, torch.ones_like(D))
    total = Mbar.sum(dim=1) / D_i + 2 * mu / p
    alpha = torch.where(total > 0, 1 / torch.where(total > 0, total, torch.ones_like(total)), torch.zeros_like(total))
    return Messages(Mbar, D_i, alpha, (2 * mu / p) * alpha)


def update(graph: Messages, F: Tensor, F0: Tensor) -> Tensor:
    """Pass one message (equation 8): ``alpha_i D_i^-1/2 sum_j Mbar_ij D_j^-1/2 F_j + beta_i F0_i``.

    Args:
        graph: what `messages` returned for F.
        F: (n, d) node features.
        F0: (n, d) node features before the first step.

    Returns:
        (n, d).
    """
    half = graph.D**-0.5
    return (graph.alpha * half)[:, None] * (graph.Mbar @ (half[:, None] * F)) + graph.beta[:, None] * F0


def iterate(
    A: Tensor,
    F0: Tensor,
    project: Callable[[Tensor], Tensor],
    p: Tensor,
    mu: Tensor,
    degree: Degree,
    steps: int,
    fixed: Tensor,
) -> Tensor:
    """Pass ``steps`` messages, ``F^(k+1) = alpha D^-1/2 Mbar D^-1/2 F^(k) + beta F^(0)`` (pGNN, ICML 2022).

    Mbar, alpha and beta are computed from F^(k) at every step.

    Args:
        A: (n, n) adjacency.
        F0: (n, d) node features.
        project: applied to features before `messages` takes their differences.
        p: scalar.
        mu: scalar.
        degree: "row" or "symmetric".
        steps: K.
        fixed: (n,) boolean, nodes that keep their features.

    Returns:
        (n, d), ``F^(K)``.
    """
    F = F0
    for _ in range(steps):
        moved = update(messages(A, project(F), p, mu, degree), F, F0)
        F = torch.where(fixed[:, None], F0, moved)
    return F


def attention_probabilities(
    query: Tensor, key: Tensor, attention_mask: Tensor | None, is_causal: bool, scale: float
) -> Tensor:
    """Compute ``M = softmax(Q K^T scale + mask)`` of one head; a row without any attended key is zero.

    Args:
        query: (N1, dk).
        key: (N2, dk).
        attention_mask: (N1, N2), boolean (True = attend) or additive.
        is_causal: whether query i attends to keys 0..i only.
        scale: factor of the scores.

    Returns:
        (N1, N2).
    """
    S = query @ key.mT * scale
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        S = S.masked_fill(~attention_mask, -torch.inf)
    elif attention_mask is not None:
        S = S + attention_mask.double()
    if is_causal:
        S = S.masked_fill(~torch.ones_like(S, dtype=torch.bool).tril(), -torch.inf)
    rows = [torch.zeros_like(row) if bool((row == -torch.inf).all()) else row.softmax(dim=0) for row in S]
    return torch.stack(rows)


def p_laplacian_attention_reference(
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
    output_weight: Tensor | None = None,
) -> Tensor:
    """Compute what `p_laplacian_attention` computes, literally (equations 5-8).

    Args:
        query: (B, H, N1, dk).
        key: (B, Hkv, N2, dk).
        value: (B, Hkv, N2, dh).
        p: as in `p_laplacian_attention`, and so are the arguments that follow.
        mu: scalar or (H,).
        node_query: (B, H, N1, dh).
        metric_factor: (H, dh, dh); node features are projected by it before differences are taken.
        attention_mask: broadcastable to (B, H, N1, N2).
        is_causal: whether query i attends to keys 0..i only.
        scale: factor of the scores.
        degree: "row" or "symmetric".
        steps: K.
        update_values: whether the value nodes move too.
        output_weight: (d, H * dh), the output projection's `torch.nn.Linear` weight, instead of
            metric_factor: differences are then taken between the d-dimensional ``F = [Q; V] Wo`` (equation
                6).

    Returns:
        (B, H, N1, dh) in float64, differentiable in every tensor argument.

    Raises:
        ValueError: if arguments do not fit together.
    """
    if output_weight is not None and metric_factor is not None:
        raise ValueError("output_weight: given together with metric_factor, accepted is one of the two")
    node_query = check_graph(query, key, value, node_query=node_query, attention_mask=attention_mask, degree=degree)
    check_p_laplacian(query.shape[1], value.shape[3], p=p, mu=mu, metric_factor=metric_factor, steps=steps)
    B, H, N1, dk = query.shape
    group = H // key.shape[1]
    scale = dk**-0.5 if scale is None else scale
    mask = None if attention_mask is None else attention_mask.expand(B, H, N1, key.shape[2])
    projections = _projections(metric_factor, output_weight, H)
    p_h, mu_h = (torch.as_tensor(x, dtype=torch.float64, device=query.device).expand(H) for x in (p, mu))

    def context(b: int, h: int) -> Tensor:
        kv = h // group
        M = attention_probabilities(
            query[b, h].double(), key[b, kv].double(), None if mask is None else mask[b, h], is_causal, scale
        )
        nodes = torch.cat([node_query[b, h], value[b, kv]]).double()
        fixed = torch.arange(len(nodes), device=query.device) >= (len(nodes) if update_values else N1)

        def project(F: Tensor) -> Tensor:
            return F if projections is None else F @ projections[h]

        return iterate(adjacency(M), nodes, project, p_h[h], mu_h[h], degree, steps, fixed)[:N1]

    return torch.stack([torch.stack([context(b, h) for h in range(H)]) for b in range(B)])


def _projections(metric_factor: Tensor | None, output_weight: Tensor | None, H: int) -> Tensor | None:
    if output_weight is not None:
        return output_weight.double().mT.unflatten(0, (H, -1))  # (H, dh, d)
    return None if metric_factor is None else metric_factor.double()


def p_adapter_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    p: float | Tensor,
    mu: float | Tensor,
    output_weight: Tensor,
    output_bias: Tensor | None,
    down_weight: Tensor,
    up_weight: Tensor,
    activation: Callable[[Tensor], Tensor],
    attention_mask: Tensor | None = None,
    degree: Degree = "row",
) -> Tensor:
    """Compute one p-adapted attention module in the projected space throughout (equations 5-9).

    Args:
        query: (B, H, N1, dh).
        key: (B, H, N2, dh).
        value: (B, H, N2, dh).
        p: scalar.
        mu: scalar.
        output_weight: (d, H * dh), the output projection's `torch.nn.Linear` weight.
        output_bias: (d,) or None.
        down_weight: (r, d), a `torch.nn.Linear` weight.
        up_weight: (d, r), a `torch.nn.Linear` weight.
        activation: the bottleneck's non-linearity.
        attention_mask: broadcastable to (B, H, N1, N2).
        degree: "row" or "symmetric".

    Returns:
        (B, N1, d) in float64: ``activation(Ubar W_down) W_up + Ubar``.
    """
    B, H, N1, dh = query.shape
    Wo = output_weight.double().mT.unflatten(0, (H, dh))  # (H, dh, d)
    mask = None if attention_mask is None else attention_mask.expand(B, H, N1, key.shape[2])
    p64, mu64 = (torch.as_tensor(x, dtype=torch.float64, device=query.device) for x in (p, mu))
    rows = []
    for b in range(B):
        Ubar = Wo.new_zeros(N1, Wo.shape[2])
        for h in range(H):
            Q, K, V = query[b, h].double(), key[b, h].double(), value[b, h].double()
            A = adjacency(attention_probabilities(Q, K, None if mask is None else mask[b, h], False, dh**-0.5))
            F = torch.cat([Q, V]) @ Wo[h]
            Ubar = Ubar + update(messages(A, F, p64, mu64, degree), F, F)[:N1]
        rows.append(Ubar if output_bias is None else Ubar + output_bias.double())
    U = torch.stack(rows)
    return activation(U @ down_weight.double().mT) @ up_weight.double().mT + U
