"""Text encoder and decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithCrossAttentions
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from padapter.errors import UserError
from padapter.models.mplug.configuration import MPlugTextConfig
from padapter.models.mplug.layers import (
    MPlugTextAttention,
    MPlugTextEmbeddings,
    MPlugTextLayer,
    MPlugTextStack,
    text_positions,
)

LOSS_REDUCTIONS = ("mean", "none")


class MPlugTextPreTrainedModel(PreTrainedModel):
    """What text encoder and decoder have in common."""

    config: MPlugTextConfig
    config_class = MPlugTextConfig
    base_model_prefix = "bert"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ("MPlugTextEmbeddings", "MPlugTextLayer")
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": MPlugTextLayer,
        "attentions": OutputRecorder(MPlugTextAttention, index=1, layer_name=".attention."),
        "cross_attentions": OutputRecorder(MPlugTextAttention, index=1, layer_name=".crossattention."),
    }


class MPlugTextModel(MPlugTextPreTrainedModel):
    """BERT without a pooler: the text encoder, or with ``is_decoder`` the decoder without its head.

    Args:
        config: sizes.
        is_decoder: whether self-attention is causal and each layer attends to encoder states.
    """

    def __init__(self, config: MPlugTextConfig, is_decoder: bool = False) -> None:
        super().__init__(config)
        self.is_decoder = is_decoder
        layers = config.num_hidden_layers if is_decoder else config.text_encoder_layers
        self.embeddings = MPlugTextEmbeddings(config)
        self.encoder = MPlugTextStack(
            [MPlugTextLayer(config, is_decoder=is_decoder, layer_idx=index) for index in range(layers)]
        )
        self.gradient_checkpointing = False
        self.post_init()

    #: how tokens are counted where no positions are given; what puts something in front of a text asks it too
    count_positions = staticmethod(text_positions)

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings."""
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Read or write text.

        Args:
            input_ids: (B, L).
            attention_mask: (B, past + L), 1 for tokens and 0 for padding; None: no padding.
            position_ids: (B, L); default: counted from the first token that is not padding.
            inputs_embeds: (B, L, d), in place of ``input_ids``.
            encoder_hidden_states: (B, N, d), what a decoder attends to.
            encoder_attention_mask: (B, N), 1 where it may; None: everywhere.
            past_key_values: keys and values of the tokens before, of a decoder.
            use_cache: whether a decoder returns them.
            **kwargs: ``output_attentions``, ``output_hidden_states``, and what attention functions take.

        Returns:
            ``last_hidden_state`` (B, L, d), and ``past_key_values`` of a decoder that uses a cache.

        Raises:
            UserError: without text, or if a decoder gets no encoder states.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("pass either input_ids or inputs_embeds.")
        if self.is_decoder and encoder_hidden_states is None:
            raise UserError("the decoder needs encoder_hidden_states: the image tokens, and in VQA the question's.")
        past_key_values = self._cache(past_key_values, use_cache)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        given = input_ids if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = self.count_positions(attention_mask, given.shape[1], past, given.device)  # type: ignore[union-attr]
        states = self.embeddings(input_ids, inputs_embeds, position_ids)
        if self.is_decoder:
            attention_mask = create_causal_mask(self.config, states, attention_mask, past_key_values=past_key_values)
            encoder_attention_mask = create_bidirectional_mask(
                self.config, states, encoder_attention_mask, encoder_hidden_states=encoder_hidden_states
            )
        else:
            attention_mask = create_bidirectional_mask(self.config, states, attention_mask)
        for layer in self.encoder.layer:
            states = layer(
                states,
                encoder_hidden_states,
                attention_mask=attention_mask,
                encoder_attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states, past_key_values=past_key_values)

    def _cache(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache of this call: for self-attention and cross-attention, or none."""
        if not self.is_decoder or (cache is None and not use_cache):
            return None
        if isinstance(cache, EncoderDecoderCache):
            return cache
        own = DynamicCache(config=self.config) if cache is None else cache
        return EncoderDecoderCache(own, DynamicCache(config=self.config))


class MPlugPredictionHead(nn.Module):
    """States (B, L, d) -> logits (B, L, V); the last weight is that of the word embeddings."""

    def __init__(self, config: MPlugTextConfig) -> None:
        super().__init__()
        self.transform = nn.ModuleDict(
            {
                "dense": nn.Linear(config.hidden_size, config.hidden_size),
                "LayerNorm": nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
            }
        )
        self.activation = ACT2FN[config.hidden_act]
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Score the vocabulary."""
        transformed = self.activation(self.transform["dense"](hidden_states))
        return self.decoder(self.transform["LayerNorm"](transformed))


class MPlugTextDecoder(MPlugTextPreTrainedModel, GenerationMixin):
    """Text decoder with its language modelling head; texts are ``[CLS] words [SEP]``."""

    _tied_weights_keys = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: MPlugTextConfig) -> None:
        super().__init__(config)
        self.bert = MPlugTextModel(config, is_decoder=True)
        self.cls = nn.ModuleDict({"predictions": MPlugPredictionHead(config)})
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.bert.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings."""
        self.bert.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The linear layer that makes logits."""
        return self._head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace that layer."""
        self._head.decoder = new_embeddings

    @property
    def _head(self) -> Any:
        return self.cls["predictions"]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        reduction: str = "mean",
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """Score texts, token by token.

        Args:
            input_ids: as for `MPlugTextModel.forward`, like all arguments that are not named here.
            attention_mask: see there.
            position_ids: see there.
            inputs_embeds: see there.
            encoder_hidden_states: see there.
            encoder_attention_mask: see there.
            labels: (B, L), aligned with the input (logits at i are compared with the label at i + 1); -100 is left out.
            reduction: of the cross entropy, without label smoothing: "mean" over all tokens with a label, or "none":
                the sum over the tokens of each sequence.
            past_key_values: see there.
            use_cache: see there.
            logits_to_keep: how many positions from the end get logits; 0: all.
            **kwargs: see there.

        Returns:
            ``logits`` (B, L, V), and with labels ``loss``: () or, with reduction "none", (B,).

        Raises:
            UserError: for another reduction, and as `MPlugTextModel.forward`.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=False if labels is not None else use_cache,
            **kwargs,
        )
        states = slice_logits_to_keep(outputs.last_hidden_state, 0 if labels is not None else logits_to_keep)
        logits = self._head(states)
        return CausalLMOutputWithCrossAttentions(
            loss=None if labels is None else next_token_loss(logits, labels, reduction),
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor, reduction: str) -> torch.Tensor:
    """Cross entropy of each token given those before it; see `MPlugTextDecoder.forward`."""
    if reduction not in LOSS_REDUCTIONS:
        raise UserError(f"reduction {reduction!r} is not one of {', '.join(LOSS_REDUCTIONS)}.")
    wanted = labels[:, 1:].to(logits.device)
    scores = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(scores.transpose(1, 2), wanted, ignore_index=-100, reduction="none")  # (B, L - 1)
    return losses.sum(1) if reduction == "none" else losses.sum() / (wanted != -100).sum()
