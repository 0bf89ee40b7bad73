"""The graph layers a p-adapter can run on the attention graph: name -> operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from padapter.functional import p_laplacian_attention, p_laplacian_weights


@dataclass(frozen=True)
class MessagePassing:
    """One graph layer.

    Attributes:
        context: maps (query, key, value, *, node_query, metric_factor, attention_mask, is_causal, scale, degree,
            dropout_p), and p and mu where used, to the new features of the query nodes (B, H, N1, dh).
        weights: the same arguments without ``dropout_p``, to the weights (B, H, N1, N2) and beta (B, H, N1).
        uses_p: whether it takes p.
        uses_mu: whether it takes mu.
    """

    context: Callable[..., torch.Tensor]
    weights: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    uses_p: bool
    uses_mu: bool

    def arguments(self, p: Any, mu: Any) -> dict[str, Any]:
        """Those of p and mu that the operator takes, as keyword arguments."""
        return ({"p": p} if self.uses_p else {}) | ({"mu": mu} if self.uses_mu else {})


def without_padding(mask: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
    """Remove the rows of padding from the mask of a bidirectional self-attention.

    The degree of a value node sums over all queries, and padding is not one: without this, what a sample gets would
    depend on how far its batch is padded. Padding is a token that no query may attend to.

    Args:
        mask: boolean (True = attend) or additive, (B or 1, H or 1, N1 or 1, N2).
        queries: N1.
        keys: N2.

    Returns:
        The mask, with every key removed from the rows of padding; as it is if it has other dimensions or N1 != N2.
    """
    if mask.dim() != 4 or queries != keys or mask.shape[-1] != keys:
        return mask
    boolean = mask.dtype == torch.bool
    # Half of the smallest number: position biases are far above it, and hidden keys below it.
    hidden = ~mask if boolean else mask <= torch.finfo(mask.dtype).min / 2
    padding = hidden.all(dim=-2).unsqueeze(-1)  # (B or 1, H or 1, N1, 1)
    return mask & ~padding if boolean else mask.masked_fill(padding, -torch.inf)


MESSAGE_PASSING: dict[str, MessagePassing] = {
    # p-Laplacian message passing, equations (7)-(8).
    "pgnn": MessagePassing(p_laplacian_attention, p_laplacian_weights, uses_p=True, uses_mu=True),
    # p = 2, mu = 0: the graph convolution that plain attention is; what is left is a vanilla adapter (equation 9).
    "gcn": MessagePassing(
        partial(p_laplacian_attention, p=2.0, mu=0.0),
        partial(p_laplacian_weights, p=2.0, mu=0.0),
        uses_p=False,
        uses_mu=False,
    ),
}
