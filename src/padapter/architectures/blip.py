"""BLIP's attention through one fused call; see `padapter.architectures.fused`.

transformers writes it step by step and offers no ``attn_implementation`` for it. Apart from the library's own rows and
shims because it imports the model's code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from padapter.architectures import fused
from padapter.architectures.fused import FusedAttention, can_fuse, fused_attention
from padapter.architectures.shims import blip_text_states, blip_vision_states, dropout_of


class FusedBlipTextSelfAttention(FusedAttention, BlipTextSelfAttention):
    """Self- and cross-attention of the text model; the second output, the weights, is None unless recorded."""

    padapter_original = BlipTextSelfAttention

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Context (B, N1, H * dh) and None; arguments as in ``BlipTextSelfAttention``."""
        mask = attention_mask if encoder_hidden_states is None else encoder_attention_mask
        if not can_fuse(mask):
            found: tuple[torch.Tensor, torch.Tensor | None] = super().forward(
                hidden_states,
                attention_mask=attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
            return found
        query, key, value = blip_text_states(self, hidden_states, encoder_hidden_states, past_key_values)
        return fused_attention(query, key, value, mask, dropout_of(self.dropout)).flatten(2), None


class FusedBlipAttention(FusedAttention, BlipAttention):
    """Attention of the image encoder; the second output, the weights, is None unless recorded."""

    padapter_original = BlipAttention

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Projected context (B, N, d) and None; arguments as in ``BlipAttention``."""
        if not can_fuse(None):
            found: tuple[torch.Tensor, torch.Tensor | None] = super().forward(hidden_states, **kwargs)
            return found
        query, key, value = blip_vision_states(self, hidden_states)
        context = fused_attention(query, key, value, None, dropout_of(self.dropout))
        return self.projection(context.flatten(2)), None


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    BlipTextSelfAttention: FusedBlipTextSelfAttention,
    BlipAttention: FusedBlipAttention,
}


def use_attention(model: nn.Module, attention: str) -> int:
    """Choose how a BLIP model computes plain attention; see `padapter.architectures.fused.use_attention`."""
    return fused.use_attention(model, attention, FUSED)
