"""Attention, step by step: what runs where no other implementation is chosen."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Softmax attention in transformers' attention interface.

    Args:
        module: the attention module; its mode decides about dropout.
        query: (B, H, N1, dh).
        key: (B, H, N2, dh).
        value: (B, H, N2, dh).
        attention_mask: additive, broadcastable to (B, H, N1, N2), or None.
        scaling: factor of the scores, None for dh ** -0.5.
        dropout: probability of dropping a weight.
        **kwargs: of other implementations; ignored.

    Returns:
        Context (B, N1, H, dh) and weights (B, H, N1, N2).
    """
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    # At least float32, and float64 where the model is: transformers' CLIP rounds to float32 here.
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights
