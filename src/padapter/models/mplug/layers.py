"""What text encoder, fusion network and decoder are made of: BERT's embeddings, attention and feed-forward layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from padapter.models.mplug.attention import eager_attention_forward
from padapter.models.mplug.configuration import MPlugTextConfig


def text_positions(attention_mask: torch.Tensor | None, length: int, past: int, device: torch.device) -> torch.Tensor:
    """Positions of the last ``length`` tokens, counted from the first one that is not padding.

    Padding on the right is counted on, as in BERT; padding on the left gets position 0.

    Args:
        attention_mask: (B, past + length), 1 for tokens, or None if there is no padding.
        length: number of tokens whose positions are wanted.
        past: number of tokens before them.
        device: where the positions are wanted.

    Returns:
        (B, length) or (1, length).
    """
    positions = torch.arange(past + length, device=device)[None]
    if attention_mask is not None and attention_mask.dim() == 2:
        first = attention_mask.to(device).bool().int().argmax(-1, keepdim=True)
        positions = (positions - first).clamp(min=0)
    return positions[:, past:]


class MPlugTextEmbeddings(nn.Module):
    """Word, position and token type (always 0): ids (B, L) -> (B, L, d)."""

    def __init__(self, config: MPlugTextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Embed ids, or word embeddings (B, L, d) in their place."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        summed = words + self.token_type_embeddings.weight[0] + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(summed))


class MPlugTextAttention(nn.Module):
    """Multi-head attention up to its context: queries (B, N1, d), keys and values from them or from other states.

    Args:
        config: sizes.
        is_cross_attention: whether keys and values come from other states.
        is_decoder: whether it belongs to the decoder; its self-attention is then causal where no mask is given.
        layer_idx: its place in the cache.
    """

    def __init__(
        self, config: MPlugTextConfig, *, is_cross_attention: bool, is_decoder: bool, layer_idx: int | None
    ) -> None:
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.is_cross_attention = is_cross_attention
        self.is_decoder = is_decoder
        self.is_causal = is_decoder and not is_cross_attention
        self.layer_idx = layer_idx
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend.

        Args:
            hidden_states: (B, N1, d).
            attention_mask: for the keys, as the attention implementation takes it.
            encoder_hidden_states: (B, N2, d), of cross-attention.
            past_key_values: of a decoder that generates.
            **kwargs: for the attention function.

        Returns:
            Context (B, N1, d) and, of implementations that have them, weights (B, H, N1, N2).
        """
        query = self._heads(self.query(hidden_states))
        key, value = self._keys_and_values(
            encoder_hidden_states if self.is_cross_attention else hidden_states, past_key_values
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.attention_head_size**-0.5,
            dropout=self.dropout.p if self.training else 0.0,
            **kwargs,
        )
        return context.reshape(hidden_states.shape), weights

    def _keys_and_values(
        self, states: torch.Tensor | None, past_key_values: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, H, N2, dh), with those of the cache; what is read from an encoder is computed once."""
        cache = past_key_values
        crosses = self.is_cross_attention and isinstance(cache, EncoderDecoderCache)
        if isinstance(cache, EncoderDecoderCache):
            if crosses and cache.is_updated.get(self.layer_idx):
                layer = cache.cross_attention_cache.layers[self.layer_idx]
                return layer.keys, layer.values
            cache = cache.cross_attention_cache if crosses else cache.self_attention_cache
        key, value = self._heads(self.key(states)), self._heads(self.value(states))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
            if crosses:
                past_key_values.is_updated[self.layer_idx] = True  # type: ignore[union-attr]
        return key, value

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        """(B, N, d) -> (B, H, N, dh)."""
        return projected.unflatten(-1, (self.num_attention_heads, self.attention_head_size)).transpose(1, 2)


class MPlugTextOutput(nn.Module):
    """The end of a sublayer: linear layer, dropout, residual, layer norm: (B, N, d_in), (B, N, d) -> (B, N, d)."""

    def __init__(self, config: MPlugTextConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Project, add, norm."""
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + residual)


class MPlugTextAttentionBlock(nn.Module):
    """An attention sublayer (post-norm): (B, N1, d) -> (B, N1, d). Arguments as for `MPlugTextAttention`."""

    def __init__(
        self,
        config: MPlugTextConfig,
        *,
        is_cross_attention: bool = False,
        is_decoder: bool = False,
        layer_idx: int | None = None,
    ) -> None:
        super().__init__()
        self.self = MPlugTextAttention(
            config, is_cross_attention=is_cross_attention, is_decoder=is_decoder, layer_idx=layer_idx
        )
        self.output = MPlugTextOutput(config, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Attend, project, add, norm; arguments as for `MPlugTextAttention.forward`."""
        context, _ = self.self(hidden_states, *args, **kwargs)
        return self.output(context, hidden_states)


class MPlugTextIntermediate(nn.Module):
    """The first half of a feed-forward sublayer: (B, N, d) -> (B, N, d_ff)."""

    def __init__(self, config: MPlugTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Project and activate."""
        return self.activation(self.dense(hidden_states))


class MPlugTextLayer(GradientCheckpointingLayer):
    """A post-norm layer of text encoder or decoder: (B, L, d) -> (B, L, d).

    Args:
        config: sizes.
        is_decoder: whether it has cross-attention, and causal self-attention.
        layer_idx: its place in the cache.
    """

    def __init__(self, config: MPlugTextConfig, *, is_decoder: bool, layer_idx: int) -> None:
        super().__init__()
        self.attention = MPlugTextAttentionBlock(config, is_decoder=is_decoder, layer_idx=layer_idx)
        if is_decoder:
            self.crossattention = MPlugTextAttentionBlock(
                config, is_cross_attention=True, is_decoder=True, layer_idx=layer_idx
            )
        self.intermediate = MPlugTextIntermediate(config)
        self.output = MPlugTextOutput(config, config.intermediate_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Self-attention, cross-attention if there are encoder states (B, N, d), feed-forward."""
        states = self.attention(hidden_states, attention_mask, past_key_values=past_key_values, **kwargs)
        if encoder_hidden_states is not None:
            states = self.crossattention(
                states, encoder_attention_mask, encoder_hidden_states, past_key_values=past_key_values, **kwargs
            )
        return self.output(self.intermediate(states), states)


class MPlugTextStack(nn.Module):
    """Layers one after the other, under the name (``layer``) that the published checkpoints have for them."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)
