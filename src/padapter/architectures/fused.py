"""Plain attention through one fused call, for modules that compute it step by step and never ask transformers how.

A *fused class* is a subclass of an attention module's class whose ``forward`` calls
`torch.nn.functional.scaled_dot_product_attention`. It is put in place by assigning ``module.__class__``, below the shim
of a p-adapter if there is one, and lives at module level, so that pickle finds it by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from padapter.architectures.interface import AttentionShim, attention_weights_recorded, rest_on


class FusedAttention:
    """Base of fused classes.

    Attributes:
        padapter_original: the class the module had, and gets back with ``use_attention(model, "eager")``.
    """

    padapter_original: ClassVar[type[nn.Module]]


def use_attention(model: nn.Module, attention: str, fused: Mapping[type[nn.Module], type[nn.Module]]) -> int:
    """Choose how the attention modules of a model compute plain attention.

    Args:
        model: any model; may be adapted already.
        attention: "sdpa" for the fused classes, "eager" for the model's own.
        fused: class of attention module -> its fused class.

    Returns:
        How many modules of these classes there are.

    Raises:
        ValueError: if ``attention`` is another word.
    """
    if attention not in ("sdpa", "eager"):
        raise ValueError(f"attention must be 'sdpa' or 'eager', not {attention!r}.")
    pairs = {new: old for old, new in fused.items()} if attention == "eager" else fused
    found = 0
    for module in model.modules():
        own = type(module).padapter_original if isinstance(module, AttentionShim) else type(module)
        found += own in fused or own in fused.values()
        if own in pairs:
            rest_on(module, pairs[own])
    return found


def can_fuse(mask: torch.Tensor | None) -> bool:
    """Whether the fused call gives what step by step attention gives: the context alone, and an additive mask if any.

    Weights that are recorded (``output_attentions=True``) exist only step by step; a boolean mask means something else
    there (0 and 1 are added to the scores).
    """
    return not attention_weights_recorded() and (mask is None or mask.is_floating_point())


def fused_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    """``softmax(q k^T / sqrt(dk) + mask) v`` without its weights.

    Args:
        query: (B, H, N1, dk).
        key: (B, H, N2, dk).
        value: (B, H, N2, dh).
        mask: additive, broadcastable to (B, H, N1, N2), or None.
        dropout: probability of dropping a weight; 0 in evaluation.

    Returns:
        Context (B, N1, H, dh). A query that may attend to nothing (padding) gets the mean of all values, as it does
        step by step, and hands no gradient to queries and keys.
    """
    if mask is not None:
        query, mask = _prepared(query, mask)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout).transpose(1, 2)


def _prepared(query: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and mask with which fused kernels compute what step by step attention does with the given ones.

    * Half of the smallest number hides a key as well as the smallest, which becomes -inf when it is rounded to half
      precision or multiplied by log2(e) (kernels use powers of 2).
    * Kernels keep the logarithm of the softmax's denominator for backward. Beside a large number common to a whole row,
      a query that may attend to nothing, it is rounded away and the gradient is wrong: the largest number of each row
      becomes 0. Step by step, the scores of such a row are rounded away instead: its query becomes 0.
    """
    lowest = max(torch.finfo(dtype).min for dtype in (query.dtype, mask.dtype)) / 2
    mask = mask.to(query.device, query.dtype).clamp(min=lowest)
    top = mask.amax(dim=-1, keepdim=True)  # (B or 1, H or 1, N1 or 1, 1)
    return query * (top > lowest), mask - top
