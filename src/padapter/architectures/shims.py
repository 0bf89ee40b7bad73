"""Attention modules that compute attention themselves, made to ask the adapter layer for the context.

Each shim's ``forward`` takes the arguments and gives the results of the original, except that attention weights are
None unless they are recorded (``output_attentions=True``). Operations follow the original one by one: with nothing
changed, the context must be bit-equal to the base model's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache

from padapter.architectures.fused import FusedAttention, can_fuse, fused_attention
from padapter.architectures.interface import AttentionShim, p_adapter_attention


class BlipTextShim(AttentionShim):
    """``BlipTextSelfAttention`` that leaves the context to the adapter layer of its output projection.

    Queries, keys, values and cache updates are those of the original module. Without an active adapter the original
    ``forward`` runs. The second output, the attention weights, is None unless they are recorded
    (``output_attentions=True``).
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend as the active adapters ask; arguments and results as in ``BlipTextSelfAttention``."""
        if not self.padapter_layer.changes_attention():
            return super().forward(  # type: ignore[misc]
                hidden_states,
                attention_mask=attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        mask = attention_mask if encoder_hidden_states is None else encoder_attention_mask
        module: Any = self
        query, key, value = blip_text_states(module, hidden_states, encoder_hidden_states, past_key_values)
        context, weights = _attend(module, query, key, value, mask, _divided, module.dropout)
        return context, weights


class BlipVisionShim(AttentionShim):
    """``BlipAttention``, the attention of BLIP's image encoder."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend as the active adapters ask; arguments and results as in ``BlipAttention``."""
        if not self.padapter_layer.changes_attention():
            return super().forward(hidden_states, **kwargs)  # type: ignore[misc]
        module: Any = self
        query, key, value = blip_vision_states(module, hidden_states)
        context, weights = _attend(module, query, key, value, None, _multiplied, module.dropout)
        return module.projection(context), weights


class GitShim(AttentionShim):
    """``GitSelfAttention``, causal on words and full on image tokens, by its mask."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend as the active adapters ask; arguments and results as in ``GitSelfAttention``."""
        if not self.padapter_layer.changes_attention():
            return super().forward(  # type: ignore[misc]
                hidden_states, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
            )
        module: Any = self
        parts = (module.query, module.key, module.value)
        query, key, value = (_heads(part(hidden_states), module.attention_head_size) for part in parts)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, module.layer_idx)
        return _attend(module, query, key, value, attention_mask, _divided, module.dropout)


class TrOCRShim(AttentionShim):
    """``TrOCRAttention``, self- and cross-attention of the TrOCR decoder."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend as the active adapters ask; arguments and results as in ``TrOCRAttention``."""
        if not self.padapter_layer.changes_attention():
            return super().forward(  # type: ignore[misc]
                hidden_states,
                key_value_states=key_value_states,
                past_key_values=past_key_values,
                attention_mask=attention_mask,
                output_attentions=output_attentions,
                **kwargs,
            )
        module: Any = self
        query = _heads(module.q_proj(hidden_states), module.head_dim)
        states = hidden_states if key_value_states is None else key_value_states
        key, value = _cached(
            past_key_values,
            module.layer_idx,
            key_value_states is not None,
            lambda: tuple(_heads(part(states), module.head_dim) for part in (module.k_proj, module.v_proj)),
        )
        dropout = nn.Dropout(module.dropout).train(module.training)
        context, weights = _attend(
            module, query, key, value, attention_mask, _scaled_queries, dropout, bool(output_attentions)
        )
        return module.out_proj(context), weights if output_attentions else None


def blip_text_states(
    module: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None, past: Cache | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query (B, H, N1, dh), key and value (B, H, N2, dh) of a ``BlipTextSelfAttention``, which also fills its cache."""
    width = module.attention_head_size
    states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    query = _heads(module.query(hidden_states), width)
    key, value = _cached(
        past,
        module.layer_idx,
        encoder_hidden_states is not None,
        lambda: tuple(_heads(part(states), width) for part in (module.key, module.value)),
    )
    return query, key, value


def blip_vision_states(module: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Query, key and value (B, H, N, dh) of a ``BlipAttention``."""
    mixed = module.qkv(hidden_states).unflatten(-1, (3, module.num_heads, -1))  # (B, N, 3, H, dh)
    return mixed.permute(2, 0, 3, 1, 4).unbind(0)


def dropout_of(dropout: nn.Dropout) -> float:
    """The probability with which a dropout drops now."""
    return float(dropout.p) if dropout.training else 0.0


Scores = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


def _divided(module: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(module.attention_head_size)


def _multiplied(module: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return torch.matmul(query, key.transpose(-1, -2)) * module.scale


def _scaled_queries(module: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return torch.matmul(query * module.scaling, key.transpose(-1, -2))


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scores_of: Scores,
    dropout: nn.Dropout,
    need_weights: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The context (B, N1, H * dh) and the weights; ``scores_of`` is the original's way to scale."""

    def plain() -> tuple[torch.Tensor, torch.Tensor | None]:
        if isinstance(module, FusedAttention) and not need_weights and can_fuse(mask):
            return fused_attention(query, key, value, mask, dropout_of(dropout)), None
        scores = scores_of(module, query, key)
        if mask is not None:
            scores = scores + mask.to(scores.device)
        weights = scores.softmax(dim=-1)
        return torch.matmul(dropout(weights), value).transpose(1, 2), weights  # (B, N1, H, dh), (B, H, N1, N2)

    context, weights = p_adapter_attention(
        module,
        query,
        key,
        value,
        mask,
        dropout=dropout_of(dropout),
        is_causal=False,
        plain=plain,
        need_weights=need_weights,
    )
    return context.reshape(*context.shape[:-2], -1), weights


def _heads(states: torch.Tensor, width: int) -> torch.Tensor:
    return states.unflatten(-1, (-1, width)).transpose(1, 2)  # (B, H, N, dh)


def _cached(
    past: Cache | None, layer: int, crosses: bool, compute: Callable[[], tuple[torch.Tensor, ...]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a layer, from its cache or computed and added to it."""
    cache, filled = past, False
    if isinstance(past, EncoderDecoderCache):
        filled = bool(past.is_updated.get(layer))
        cache = past.cross_attention_cache if crosses else past.self_attention_cache
    if crosses and filled and cache is not None:
        return cache.layers[layer].keys, cache.layers[layer].values
    key, value = compute()
    if cache is not None:
        key, value = cache.update(key, value, layer)
        if crosses and isinstance(past, EncoderDecoderCache):
            past.is_updated[layer] = True
    return key, value
