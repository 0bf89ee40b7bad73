"""The graph convolution on the attention graph: what attention is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from padapter.functional._arguments import check_dropout
from padapter.functional.graph import GraphArguments, attention_graph, drop, without_autocast

if TYPE_CHECKING:
    from typing_extensions import Unpack


def gcn_attention(
    query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float = 0.0, **graph: Unpack[GraphArguments]
) -> Tensor:
    """Attend by one graph convolution (GCN, ICLR 2017): ``context_i = sum_j D_i^-1/2 M_ij D_j^-1/2 F_j``.

    In "row" degree this is `torch.nn.functional.scaled_dot_product_attention`. What the textbook's layer has and this
    one leaves out: self-loops (attention has no edge from a query to itself), the weight (that is the frozen value
    projection) and the non-linearity (that is in the bottleneck behind).

    Args:
        query: (B, H, N1, dk).
        key: (B, Hkv, N2, dk), Hkv dividing H.
        value: (B, Hkv, N2, dh).
        dropout_p: probability of dropping a weight. Always applied when > 0: pass 0.0 in evaluation.
        **graph: see `GraphArguments`.

    Returns:
        (B, H, N1, dh) in value's dtype, computed in float32 or float64 as in `p_laplacian_attention`. A row without
        any attended key is 0.

    Raises:
        ValueError: if shapes do not fit together, the degree is unknown or dropout_p not in [0, 1].
    """
    check_dropout(dropout_p)
    with without_autocast(query.device):
        nodes = attention_graph(query, key, value, **graph)
        context = drop(nodes.adjacency(), dropout_p) @ nodes.value
    return context.to(value.dtype)


def gcn_weights(query: Tensor, key: Tensor, value: Tensor, **graph: Unpack[GraphArguments]) -> tuple[Tensor, Tensor]:
    """Compute the weights of `gcn_attention` instead of its context.

    Args:
        query: (B, H, N1, dk).
        key: (B, Hkv, N2, dk).
        value: (B, Hkv, N2, dh).
        **graph: see `GraphArguments`.

    Returns:
        ``D_i^-1/2 M_ij D_j^-1/2`` (B, H, N1, N2) and the queries' own share, 0 (B, H, N1), in value's dtype.

    Raises:
        ValueError: as `gcn_attention`.
    """
    with without_autocast(query.device):
        weights = attention_graph(query, key, value, **graph).adjacency().to(value.dtype)
    return weights, torch.zeros_like(weights[..., 0])
