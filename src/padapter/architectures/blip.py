"""BLIP: the text decoder's self- and cross-attention.

transformers runs BLIP's text attention eagerly and never looks at ``ALL_ATTENTION_FUNCTIONS``, so it needs a shim. It
also never hands ``encoder_attention_mask`` to the cross-attention; the shim receives the same arguments as the
original and so has the same limit: all image tokens are attended to.

The same classes serve as a bidirectional text encoder in BLIP's question-answering and retrieval models. Which of the
two a module is shows only when it is called, so the row treats both as a decoder (degree ``row``), which is right for
either; the default targets are those of the decoder.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache

from padapter.architectures.interface import AttentionShim, p_adapter_attention
from padapter.architectures.table import Architecture, AttentionRow, FeedForwardRow, Targets


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
        query = _heads(self, self.query(hidden_states))  # type: ignore[attr-defined]
        key, value = _keys_and_values(self, hidden_states, encoder_hidden_states, past_key_values)

        def plain() -> tuple[torch.Tensor, torch.Tensor]:
            return _eager_attention(self, query, key, value, mask)

        dropout: nn.Dropout = self.dropout  # type: ignore[attr-defined]
        context, weights = p_adapter_attention(
            self,  # type: ignore[arg-type]
            query,
            key,
            value,
            mask,
            dropout=dropout.p if dropout.training else 0.0,
            is_causal=False,
            plain=plain,
        )
        return context.reshape(*context.shape[:-2], -1), weights  # (B, N1, H * dh)


def _heads(module: Any, states: torch.Tensor) -> torch.Tensor:
    return states.view(*states.shape[:-1], -1, module.attention_head_size).transpose(1, 2)  # (B, H, N, dh)


def _keys_and_values(
    module: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None, past: Cache | None
) -> tuple[torch.Tensor, torch.Tensor]:
    crosses = encoder_hidden_states is not None
    cache, filled = past, False
    if isinstance(past, EncoderDecoderCache):
        filled = bool(past.is_updated.get(module.layer_idx))
        cache = past.cross_attention_cache if crosses else past.self_attention_cache
    if crosses and filled and cache is not None:
        layer = cache.layers[module.layer_idx]
        return layer.keys, layer.values
    states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    key, value = _heads(module, module.key(states)), _heads(module, module.value(states))
    if cache is not None:
        key, value = cache.update(key, value, module.layer_idx)
        if crosses and isinstance(past, EncoderDecoderCache):
            past.is_updated[module.layer_idx] = True
    return key, value


def _eager_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    # Operation by operation as in BlipTextSelfAttention: the context must be bit-equal to the base model's.
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(module.attention_head_size)
    if mask is not None:
        scores = scores + mask.to(scores.device)
    weights = scores.softmax(dim=-1)
    context = torch.matmul(module.dropout(weights), value)
    return context.transpose(1, 2), weights  # (B, N1, H, dh), (B, H, N1, N2)


_LAYER_OF_DECODER = r"(?:.*\.)?text_decoder\.(?:.*\.)?layer\.{layer}\."
_LAYER_OF_TEXT_MODEL = r"(?:.*\.)?encoder\.layer\.{layer}\."
_ATTENTION = r"(?:attention|crossattention)\.output\.dense"

BLIP = Architecture(
    name="blip",
    attention=(
        AttentionRow(
            module="BlipTextSelfAttention",
            query="query",
            value="value",
            output="..output.dense",
            num_heads="num_attention_heads",
            decoder=True,
            shim=BlipTextShim,
        ),
    ),
    feed_forward=(FeedForwardRow(module="BlipTextLayer", input="intermediate.dense", output="output.dense"),),
    targets={
        "blip": Targets(_LAYER_OF_DECODER + _ATTENTION, _LAYER_OF_DECODER + r"output\.dense"),
        "blip_text_model": Targets(_LAYER_OF_TEXT_MODEL + _ATTENTION, _LAYER_OF_TEXT_MODEL + r"output\.dense"),
    },
)
