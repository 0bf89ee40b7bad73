"""The attention graph of equations (5)-(6), on which every graph layer of this package acts.

Nodes are N1 queries and N2 values, edges ``A = [[0, M], [M^T, 0]]`` with ``M = softmax(scale Q K^T + mask)``. Only the
block M (N1, N2) and its transpose ever exist. Attention has no edge from a node to itself, and none is added, though
the textbook's graph convolution adds them.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from padapter.functional._arguments import Degree, check_graph


class GraphArguments(TypedDict, total=False):
    """Keyword arguments that describe a graph; every layer hands them to `attention_graph`.

    Attributes:
        node_query: (B, H, N1, dh), the query nodes' features. Default: query (then dk must be dh). RoPE models pass
            the query before rotation here.
        attention_mask: broadcastable to (B, H, N1, N2). Boolean: True = attend. Floating point: added to the scores;
            -inf removes a key, finite values however negative are added literally (a row of them is still attended).
        is_causal: query i attends to keys 0..i (aligned top left, as in torch); may be combined with a mask.
        scale: factor of the scores. Default: ``1 / sqrt(dk)``.
        degree: "row" takes D = 1: causal, and the same with or without a key/value cache. "symmetric" takes D from
            the graph, literally, so D_j sums M over *all* N1 queries: for encoders only. Padding queries count as
            well, unless the mask removes every key from their rows.
    """

    node_query: Tensor | None
    attention_mask: Tensor | None
    is_causal: bool
    scale: float | None
    degree: Degree


class AttentionGraph(NamedTuple):
    """One attention graph per head, in the dtype of the computation: float32, or float64 if an input is.

    Attributes:
        query: (B, H, N1, dh), features of the query nodes.
        value: (B, H, N2, dh), features of the value nodes.
        log_M: (B, H, N1, N2), logarithm of the attention probabilities; 0 where ``removed``.
        removed: which keys the mask takes away, broadcastable to (B, H, N1, N2) with N2 columns, or None: M is 0 there.
        inverse_root_D: (B, H, N2, 1), ``D_j^-1/2`` of the value nodes, or None where D = 1. Query nodes have D_i = 1 in
            both degrees, their edges being a row of a softmax.
    """

    query: Tensor
    value: Tensor
    log_M: Tensor
    removed: Tensor | None
    inverse_root_D: Tensor | None

    def adjacency(self) -> Tensor:
        """The normalised adjacency from values to queries, ``D_i^-1/2 M_ij D_j^-1/2`` (B, H, N1, N2).

        Its transpose is the one from queries to values. A query without any attended key has a row of zeros.
        """
        weights = self.log_M.exp()
        if self.removed is not None:
            weights = weights.masked_fill(self.removed, 0.0)
        return weights if self.inverse_root_D is None else weights * self.inverse_root_D.mT


def attention_graph(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    node_query: Tensor | None = None,
    attention_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    degree: Degree = "row",
) -> AttentionGraph:
    """Build the graph that one attention module is, from what an attention function is given.

    Call it, and compute with it, inside `without_autocast`.

    Args:
        query: (B, H, N1, dk).
        key: (B, Hkv, N2, dk), Hkv dividing H; consecutive query heads share a key head.
        value: (B, Hkv, N2, dh).
        node_query: (B, H, N1, dh); this and the following as in `GraphArguments`.
        attention_mask: broadcastable to (B, H, N1, N2).
        is_causal: whether query i attends to keys 0..i only.
        scale: factor of the scores.
        degree: "row" or "symmetric".

    Returns:
        The graph, with all H heads.

    Raises:
        ValueError: if shapes do not fit together or the degree is unknown.
    """
    node_query = check_graph(query, key, value, node_query=node_query, attention_mask=attention_mask, degree=degree)
    dtype = torch.float32
    for tensor in (query, key, value, node_query):
        dtype = torch.promote_types(dtype, tensor.dtype)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    log_M, removed = _log_attention(query.to(dtype), key.to(dtype), attention_mask, is_causal, scale)
    inverse_root_D = _inverse_root_degrees(log_M, removed) if degree == "symmetric" else None
    return AttentionGraph(node_query.to(dtype), value.to(dtype), log_M, removed, inverse_root_D)


class Step(NamedTuple):
    """The last step of a graph layer, taken apart: ``context = (W X + own F) T``.

    Attributes:
        weights: (B, H, N1, N2), W.
        own: (B, H, N1), the query nodes' own share.
        value: (B, H, N2, dh), X: the value nodes' features before the step.
        query: (B, H, N1, dh), F: the query nodes' features before the first step.
        mapping: (H, dh, dh), T: what features are multiplied with after the step; None for the identity.
    """

    weights: Tensor
    own: Tensor
    value: Tensor
    query: Tensor
    mapping: Tensor | None = None

    def context(self, dropout_p: float = 0.0) -> Tensor:
        """(B, H, N1, dh), computed from these very tensors, so that gradients with respect to them exist."""
        with without_autocast(self.weights.device):
            context = drop(self.weights, dropout_p) @ self.value + self.own.unsqueeze(-1) * self.query
            return context if self.mapping is None else context @ self.mapping


def plain_step(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, is_causal: bool, scale: float | None
) -> Step:
    """Attention as it is, ``softmax(scale Q K^T + mask) V``, taken apart.

    Args:
        query: (B, H, N1, dk).
        key: (B, Hkv, N2, dk), Hkv dividing H.
        value: (B, Hkv, N2, dh).
        attention_mask: broadcastable to (B, H, N1, N2), as in `GraphArguments`.
        is_causal: whether query i attends to keys 0..i only.
        scale: factor of the scores. Default: ``1 / sqrt(dk)``.

    Returns:
        The step, with all H heads, in float32 (float64 if an input is). Queries have no share of their own, and their
        features are zeros: they may be of another width.
    """
    dtype = torch.float32
    for tensor in (query, key, value):
        dtype = torch.promote_types(dtype, tensor.dtype)
    with without_autocast(query.device):
        groups = query.shape[1] // key.shape[1]
        key, value = (states.to(dtype).repeat_interleave(groups, dim=1) for states in (key, value))
        log_M, removed = _log_attention(query.to(dtype), key, attention_mask, is_causal, scale)
        weights = log_M.exp()
        weights = weights if removed is None else weights.masked_fill(removed, 0.0)
    own = torch.zeros_like(weights[..., 0])
    return Step(weights, own, value, torch.zeros_like(own).unsqueeze(-1))


def drop(weights: Tensor, dropout_p: float) -> Tensor:
    """Drop weights as attention dropout does; always, if ``dropout_p`` > 0."""
    return torch.nn.functional.dropout(weights, dropout_p) if dropout_p > 0.0 else weights


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast would take distances in bfloat16 and lose them to cancellation."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


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
