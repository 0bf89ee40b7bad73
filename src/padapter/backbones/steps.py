"""Training steps without data and without a processor, for measuring what a step costs."""

from __future__ import annotations

from typing import Any

import torch

from padapter.backbones.base import LossReduction, unwrapped
from padapter.backbones.cross_attending import CrossAttendingBackbone, encode_images
from padapter.backbones.training_module import Attended, DecoderTraining, Fields


def bare_training(family: type[CrossAttendingBackbone], model: Any, reduction: LossReduction) -> DecoderTraining:
    """What :meth:`Backbone.training_module` returns, for a model that nobody has a processor for.

    Args:
        family: of the model.
        model: with or without a PEFT wrapper.
        reduction: See :func:`padapter.backbones.losses.next_token_loss`.
    """
    base = unwrapped(model)

    def read(fields: Fields) -> Attended:
        return family.attended(base, encode_images(base, family.parts["image"], fields["pixel_values"]), fields)

    return DecoderTraining(model, family.parts["text"], read, reduction, family.decoder_inputs)


def random_batch(
    family: type[CrossAttendingBackbone], model: Any, *, rows: int, tokens: int
) -> dict[str, torch.Tensor]:
    """A batch in the form of :meth:`Backbone.collate`, one text per picture.

    Args:
        family: of the model.
        model: without a PEFT wrapper.
        rows: B, pictures and texts.
        tokens: L, of every text, and of every question where questions are read apart.
    """
    config = model.config
    side, words = config.vision_config.image_size, config.text_config.vocab_size
    ids = torch.randint(5, words, (rows, tokens))
    every = torch.ones_like(ids)
    return {
        "pixel_values": torch.randn(rows, 3, side, side),
        **family.question_fields(model, ids, every),
        "image_index": torch.arange(rows),
        "input_ids": ids,
        "attention_mask": every,
        "labels": ids,
        "weights": torch.ones(rows),
    }
