"""Personalised propagation on the attention graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from padapter.functional._arguments import check_dropout, check_number, check_steps
from padapter.functional.graph import AttentionGraph, GraphArguments, Step, attention_graph, drop, without_autocast

if TYPE_CHECKING:
    from typing_extensions import Unpack


def appnp_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    teleport: float,
    steps: int = 1,
    update_values: bool = False,
    dropout_p: float = 0.0,
    **graph: Unpack[GraphArguments],
) -> Tensor:
    """Attend by K steps of personalised propagation (APPNP, ICLR 2019).

    With ``Ahat = D^-1/2 A D^-1/2`` on all nodes, ``F^(0)`` their features and t = ``teleport``::

        F^(k+1) = (1 - t) Ahat F^(k) + t F^(0)

    What attention leaves open, and what was chosen: no self-loops are added. Where value nodes keep their features,
    every step gives the queries the same numbers, so K means nothing. In "row" degree D = 1 is taken literally: what
    value nodes receive, ``M^T F``, is a sum and no mean, and grows with the number of queries; "symmetric" keeps it
    in bounds.

    Args:
        query: (B, H, N1, dk).
        key: (B, Hkv, N2, dk), Hkv dividing H.
        value: (B, Hkv, N2, dh).
        teleport: t, from 0 (`gcn_attention`, for K = 1) to 1 (the query nodes' own features).
        steps: K >= 1.
        update_values: whether the value nodes move too: for encoders only, since every query then reaches every other.
            Without effect for K = 1. The graph is bipartite, so an even K brings the values' features to the queries
            only by way of t.
        dropout_p: probability of dropping a weight, anew at each step. Always applied when > 0: pass 0.0 in evaluation.
        **graph: see `GraphArguments`.

    Returns:
        (B, H, N1, dh) in value's dtype, computed in float32 or float64 as in `p_laplacian_attention`.

    Raises:
        ValueError: if shapes do not fit together, a number is out of range or the degree is unknown.
    """
    check_propagation(teleport, steps, dropout_p)
    with without_autocast(query.device):
        nodes = attention_graph(query, key, value, **graph)
        context = propagate(nodes, teleport, steps, update_values, dropout_p)
    return context.to(value.dtype)


def appnp_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    teleport: float,
    steps: int = 1,
    update_values: bool = False,
    **graph: Unpack[GraphArguments],
) -> tuple[Tensor, Tensor]:
    """Compute the weights of a step of `appnp_attention` instead of its context; they are those of every step.

    Args:
        query: (B, H, N1, dk); all arguments are those of `appnp_attention`.
        key: (B, Hkv, N2, dk).
        value: (B, Hkv, N2, dh).
        teleport: t.
        steps: K.
        update_values: whether the value nodes move too.
        **graph: see `GraphArguments`.

    Returns:
        ``(1 - t) D_i^-1/2 M_ij D_j^-1/2`` (B, H, N1, N2) and the queries' own share, t (B, H, N1), in value's dtype.

    Raises:
        ValueError: as `appnp_attention`.
    """
    check_propagation(teleport, steps, 0.0)
    with without_autocast(query.device):
        weights = (1 - teleport) * attention_graph(query, key, value, **graph).adjacency()
    return weights.to(value.dtype), torch.full_like(weights[..., 0], teleport).to(value.dtype)


def appnp_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    teleport: float,
    steps: int = 1,
    update_values: bool = False,
    **graph: Unpack[GraphArguments],
) -> Step:
    """The last step of `appnp_attention`, taken apart; arguments and errors are its own."""
    check_propagation(teleport, steps, 0.0)
    with without_autocast(query.device):
        nodes = attention_graph(query, key, value, **graph)
        return last_step(nodes, teleport, features_before(nodes, teleport, steps, update_values, 0.0))


def last_step(nodes: AttentionGraph, teleport: float, features: Tensor, mapping: Tensor | None = None) -> Step:
    """The step from ``features`` (B, H, N2, dh) of the value nodes to the queries, and ``mapping`` (H, dh, dh)."""
    weights = (1 - teleport) * nodes.adjacency()
    own = torch.full_like(weights[..., 0], teleport)
    return Step(weights, own, features, nodes.query, mapping)


def check_propagation(teleport: float, steps: int, dropout_p: float) -> None:
    """Refuse numbers out of range."""
    check_number("teleport", teleport, 0.0, 1.0)
    check_steps(steps)
    check_dropout(dropout_p)


def propagate(
    nodes: AttentionGraph,
    teleport: float,
    steps: int,
    update_values: bool,
    dropout_p: float,
    transform: Callable[[Tensor, int], Tensor] | None = None,
) -> Tensor:
    """Run ``F^(k) = transform((1 - t) Ahat F^(k-1) + t F^(0), k)`` and return the query nodes' part.

    Args:
        nodes: the graph.
        teleport: t.
        steps: K.
        update_values: whether value nodes take part.
        dropout_p: probability of dropping a weight.
        transform: what a step ends with, given features (B, H, N, dh) and the number of the step from 1; None for
            nothing.

    Returns:
        (B, H, N1, dh).
    """
    features = features_before(nodes, teleport, steps, update_values, dropout_p, transform)
    features = (1 - teleport) * (drop(nodes.adjacency(), dropout_p) @ features) + teleport * nodes.query
    return features if transform is None else transform(features, steps)


def features_before(
    nodes: AttentionGraph,
    teleport: float,
    steps: int,
    update_values: bool,
    dropout_p: float,
    transform: Callable[[Tensor, int], Tensor] | None = None,
) -> Tensor:
    """The value nodes' features (B, H, N2, dh) before the last of the steps of `propagate`."""
    to_queries = nodes.adjacency()
    # Without moving values, what the queries get in the last step depends on no step before.
    first = 1 if update_values else steps
    # A bipartite graph: queries after step K need only values after K - 1, these only queries after K - 2, and so on.
    features = nodes.value if (steps - first) % 2 == 0 else nodes.query
    for step in range(first, steps):
        at_queries = (steps - step) % 2 == 0
        weights, own = (to_queries, nodes.query) if at_queries else (to_queries.mT, nodes.value)
        features = (1 - teleport) * (drop(weights, dropout_p) @ features) + teleport * own
        features = features if transform is None else transform(features, step)
    return features
