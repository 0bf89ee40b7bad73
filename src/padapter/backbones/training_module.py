"""The loss of models whose text decoder attends to what was read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from padapter.backbones.base import LossReduction, unwrapped
from padapter.backbones.image_memory import before_reading, read_images
from padapter.backbones.losses import labelled, next_token_loss

#: states (R, N, d), and a mask (R, N) that is 1 where a decoder may attend to them, or None for everywhere
Attended = tuple[torch.Tensor, torch.Tensor | None]
Fields = Mapping[str, torch.Tensor]


class DecoderTraining(nn.Module):
    """Batch of :meth:`Backbone.collate` -> loss and logits.

    Label smoothing is the decoder's own (its ``label_smoothing``); one that has none is trained without.

    Args:
        model: The model, or a PEFT wrapper around it.
        decoder: Dotted path of its text decoder with language-model head.
        read: Fields of a batch that stand for images and questions -> what the decoder attends to, one entry per image.
        reduction: See :func:`padapter.backbones.losses.next_token_loss`.
        decoder_inputs: What else the decoder is given.

    Raises:
        ValueError: for another reduction.
    """

    # Tells transformers' Trainer that the loss is a mean of this batch, so that it divides by the number of
    # accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(
        self,
        model: nn.Module,
        decoder: str,
        read: Callable[[Fields], Attended],
        reduction: LossReduction,
        decoder_inputs: Mapping[str, Any],
    ) -> None:
        super().__init__()
        if reduction not in ("sequence", "token"):
            raise ValueError(f"loss_reduction must be 'sequence' or 'token', not {reduction!r}.")
        self.model = model
        self.decoder = decoder
        self.read = read
        self.reduction: LossReduction = reduction
        self.decoder_inputs = dict(decoder_inputs)

    def forward(
        self,
        image_index: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
        **fields: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return ``{"loss": (), "logits": (K, V)}``; shapes of the inputs as in :meth:`Backbone.collate`."""
        decoder: Any = unwrapped(self.model).get_submodule(self.decoder)
        states, mask = self.read(fields)  # (I, N, d)
        memory = None
        if len(image_index) > len(states) and not _checkpointed(decoder):
            # Answers to one question look at one picture: its keys and values are those of all of them. (Checkpointed
            # layers do without caches.)
            memory = before_reading(read_images(decoder, states), image_index)
        hidden = decoder.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=states[image_index],  # (S, N, d)
            encoder_attention_mask=None if mask is None else mask[image_index],
            past_key_values=memory,
            use_cache=False,
            **self.decoder_inputs,
        ).last_hidden_state  # (S, L, d)
        # (K, V): few tokens of a question and its answer have a label
        logits = decoder.get_submodule("cls.predictions")(hidden[labelled(labels)])
        loss = next_token_loss(
            logits,
            labels,
            weights,
            num_images=states.shape[0],
            reduction=self.reduction,
            label_smoothing=float(getattr(decoder, "label_smoothing", 0.0)),
        )
        return {"loss": loss, "logits": logits}


def _checkpointed(decoder: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in decoder.modules())
