"""What the attention functions accept, checked once: shapes, the degree's name, the ranges of numbers."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Degree = Literal["row", "symmetric"]
DEGREES: tuple[str, ...] = get_args(Degree)


def check_graph(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    node_query: Tensor | None,
    attention_mask: Tensor | None,
    degree: str,
) -> Tensor:
    """Refuse what does not fit together and return the query nodes' features, `node_query` or its default."""
    _check_heads(query, key, value)
    batch, heads, queries, width = query.shape
    keys, features = key.shape[2], value.shape[3]
    if node_query is None:
        if width != features:
            raise ValueError(
                f"node_query: needed when query and value differ in width (query {tuple(query.shape)}, "
                f"value {tuple(value.shape)}); give features of shape {(batch, heads, queries, features)}"
            )
        node_query = query
    _check_shape("node_query", node_query, (batch, heads, queries, features))
    if attention_mask is not None:
        _check_mask(attention_mask, (batch, heads, queries, keys))
    if degree not in DEGREES:
        raise ValueError(f"degree: got {degree!r}, accepted are {', '.join(map(repr, DEGREES))}")
    return node_query


def check_p_laplacian(
    heads: int, features: int, *, p: float | Tensor, mu: float | Tensor, metric_factor: Tensor | None, steps: int
) -> None:
    """Refuse a p, mu, metric factor or number of steps that cannot be used."""
    if metric_factor is not None:
        check_matrices("metric_factor", metric_factor, heads, features)
    _check_parameter("p", p, heads, least=1.0)
    _check_parameter("mu", mu, heads, least=0.0)
    check_steps(steps)


def check_dropout(dropout_p: float) -> None:
    """Refuse a probability outside [0, 1]."""
    check_number("dropout_p", dropout_p, 0.0, 1.0)


def check_number(name: str, given: float, low: float, high: float) -> None:
    """Refuse a number outside [low, high]; no upper limit where ``high`` is infinite."""
    if not (math.isfinite(given) and low <= given <= high):
        accepted = f"finite number >= {low:g}" if math.isinf(high) else f"number from {low:g} to {high:g}"
        raise ValueError(f"{name}: got {given}, accepted is a {accepted}")


def check_steps(steps: int) -> None:
    """Refuse a number of steps that is no positive integer."""
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: got {steps}, accepted is an integer >= 1")


def check_matrices(name: str, given: Tensor, heads: int, features: int) -> None:
    """Refuse what is not one square matrix per head."""
    _check_shape(name, given, (heads, features, features))


def _check_heads(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, accepted is (batch, heads, length, width)")
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: got dtype {tensor.dtype}, accepted are floating-point dtypes")
    batch, heads, _, width = query.shape
    kv_heads, keys = key.shape[1:3]
    if key.shape[0] != batch or key.shape[3] != width or kv_heads == 0 or heads % kv_heads or keys == 0:
        raise ValueError(
            f"key: got shape {tuple(key.shape)}, accepted for query {tuple(query.shape)} is "
            f"({batch}, Hkv, N2, {width}) with Hkv dividing {heads} and N2 at least 1"
        )
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(
            f"value: got shape {tuple(value.shape)}, accepted for key {tuple(key.shape)} is "
            f"({batch}, {kv_heads}, {keys}, dh)"
        )


def _check_shape(name: str, tensor: Tensor, accepted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != accepted:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, accepted is {accepted}")


def _check_mask(mask: Tensor, scores: tuple[int, ...]) -> None:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(
            f"attention_mask: got dtype {mask.dtype}, accepted are bool (True = attend) and floating point "
            "(added to the scores); turn a 0/1 mask into a boolean one with mask.bool()"
        )
    fits = mask.dim() <= 4 and all(
        size in (1, full) for size, full in zip(reversed(mask.shape), reversed(scores), strict=False)
    )
    if not fits:
        raise ValueError(f"attention_mask: got shape {tuple(mask.shape)}, accepted is any that broadcasts to {scores}")


def _check_parameter(name: str, given: float | Tensor, heads: int, *, least: float) -> None:
    if isinstance(given, Tensor):
        # The values stay unchecked: reading them would make the host wait for the device at every layer.
        if given.dim() > 1 or given.numel() not in (1, heads):
            raise ValueError(f"{name}: got shape {tuple(given.shape)}, accepted are (), (1,) and ({heads},)")
    else:
        check_number(name, given, least, math.inf)
