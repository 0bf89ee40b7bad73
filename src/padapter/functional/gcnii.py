"""GCNII on the attention graph: personalised propagation with an identity mapping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from padapter.functional._arguments import check_matrices, check_number
from padapter.functional.appnp import appnp_weights, check_propagation, features_before, last_step, propagate
from padapter.functional.graph import GraphArguments, Step, attention_graph, without_autocast

if TYPE_CHECKING:
    from typing_extensions import Unpack


def gcnii_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mapping: Tensor,
    teleport: float,
    theta: float,
    steps: int = 1,
    update_values: bool = False,
    dropout_p: float = 0.0,
    **graph: Unpack[GraphArguments],
) -> Tensor:
    """Attend by K steps of GCNII (ICML 2020): an initial residual and an identity mapping.

    With ``Ahat = D^-1/2 A D^-1/2`` on all nodes, ``F^(0)`` their features, t = ``teleport`` and W = ``mapping``::

        F^(l) = ((1 - t) Ahat F^(l-1) + t F^(0)) ((1 - b_l) I + b_l W)        b_l = log(theta / l + 1)

    W = I is `appnp_attention`. What attention leaves open, and what was chosen: no self-loops are added. l is the
    number of the step, 1 to K, not of the transformer layer: b_l makes repeated *steps* on one graph forget W, and
    every transformer layer is a graph of its own, with a residual and other layers in between. One W serves all
    steps; the paper has one per layer. The paper's ReLU after each step is left out: an attention head has none, and
    the p-adapter's non-linearity comes in the bottleneck. Where value nodes keep their features, the K-th step starts
    from the same features as the first, so K only sets b.

    Args:
        query: (B, H, N1, dk).
        key: (B, Hkv, N2, dk), Hkv dividing H.
        value: (B, Hkv, N2, dh).
        mapping: (H, dh, dh), W; gradients flow.
        teleport: t, from 0 to 1.
        theta: >= 0, strength of the identity mapping.
        steps: K >= 1.
        update_values: whether the value nodes move too; see `appnp_attention`.
        dropout_p: probability of dropping a weight, anew at each step. Always applied when > 0: pass 0.0 in evaluation.
        **graph: see `GraphArguments`.

    Returns:
        (B, H, N1, dh) in value's dtype, computed in float32 or float64 as in `p_laplacian_attention`.

    Raises:
        ValueError: if shapes do not fit together, a number is out of range or the degree is unknown.
    """
    check_propagation(teleport, steps, dropout_p)
    check_number("theta", theta, 0.0, math.inf)
    with without_autocast(query.device):
        nodes = attention_graph(query, key, value, **graph)
        check_matrices("mapping", mapping, *nodes.value.shape[1::2])
        transform = _transform(mapping.to(nodes.value.dtype), theta)
        context = propagate(nodes, teleport, steps, update_values, dropout_p, transform)
    return context.to(value.dtype)


def _transform(W: Tensor, theta: float) -> Callable[[Tensor, int], Tensor]:
    def transform(features: Tensor, step: int) -> Tensor:
        b = math.log(theta / step + 1)
        return (1 - b) * features + b * (features @ W)

    return transform


def gcnii_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mapping: Tensor,
    teleport: float,
    theta: float,
    steps: int = 1,
    update_values: bool = False,
    **graph: Unpack[GraphArguments],
) -> Step:
    """The last step of `gcnii_attention`, taken apart; arguments and errors are its own."""
    check_propagation(teleport, steps, 0.0)
    check_number("theta", theta, 0.0, math.inf)
    with without_autocast(query.device):
        nodes = attention_graph(query, key, value, **graph)
        check_matrices("mapping", mapping, *nodes.value.shape[1::2])
        W = mapping.to(nodes.value.dtype)
        transform = _transform(W, theta)
        features = features_before(nodes, teleport, steps, update_values, 0.0, transform)
        identity = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device).expand_as(W)
        return last_step(nodes, teleport, features, transform(identity, steps))


def gcnii_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mapping: Tensor,
    teleport: float,
    theta: float,
    steps: int = 1,
    update_values: bool = False,
    **graph: Unpack[GraphArguments],
) -> tuple[Tensor, Tensor]:
    """Compute the weights of a step of `gcnii_attention`, before W, instead of its context; those of every step.

    Args:
        query: (B, H, N1, dk); all arguments are those of `gcnii_attention`.
        key: (B, Hkv, N2, dk).
        value: (B, Hkv, N2, dh).
        mapping: (H, dh, dh).
        teleport: t.
        theta: strength of the identity mapping.
        steps: K.
        update_values: whether the value nodes move too.
        **graph: see `GraphArguments`.

    Returns:
        As `appnp_weights`.

    Raises:
        ValueError: as `gcnii_attention`.
    """
    check_number("theta", theta, 0.0, math.inf)
    check_matrices("mapping", mapping, query.shape[1], value.shape[3])
    return appnp_weights(query, key, value, teleport=teleport, steps=steps, update_values=update_values, **graph)
