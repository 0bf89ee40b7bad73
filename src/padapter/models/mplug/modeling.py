"""mPLUG's models with a decoder: captioning and question answering."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.utils.generic import can_return_tuple

from padapter.errors import UserError
from padapter.models.mplug.base import MPlugModel, MPlugOutput, MPlugPreTrainedModel
from padapter.models.mplug.configuration import MPlugConfig
from padapter.models.mplug.searching import SearchingModel
from padapter.models.mplug.text import MPlugTextDecoder

_TIED = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
}


class MPlugForConditionalGeneration(SearchingModel, MPlugPreTrainedModel, GenerationMixin):
    """Captions, and answers that continue a prompt: the decoder attends to the image tokens and to nothing else.

    Text encoder and fusion network take no part in this task, and are not in the model; it can be loaded from a folder
    that has them.
    """

    _tied_weights_keys = _TIED
    _keys_to_ignore_on_load_unexpected = (r"^text_encoder\.", r"^fusion_encoder\.")
    official_lengths = (8, 25)

    def __init__(self, config: MPlugConfig) -> None:
        super().__init__(config)
        self.text_decoder = MPlugTextDecoder(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings of the decoder."""
        return self.text_decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace them."""
        self.text_decoder.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        reduction: str = "mean",
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> MPlugOutput:
        """Score texts about images.

        Args:
            pixel_values: (B, 3, h, w).
            input_ids: (B, L), ``[CLS] text [SEP]``; default: the labels.
            attention_mask: (B, L), 0 for padding; None: no padding, or padding on the right.
            labels: (B, L), aligned with ``input_ids``; -100 is left out.
            image_states: (B, N, d), in place of ``pixel_values``.
            reduction: "mean" of the cross entropy over all tokens with a label, or "none", its sums per sequence.
            interpolate_pos_encoding: whether images may have another size than the model's.
            **kwargs: for the decoder, e.g. ``output_attentions`` or ``past_key_values``.

        Returns:
            ``loss``, () or (B,), with labels; ``logits`` (B, L, V); ``image_states`` (B, N, d).

        Raises:
            UserError: without image or text, and for images of another size.
        """
        image = self._images(pixel_values, image_states, interpolate_pos_encoding)
        outputs = self.text_decoder(
            input_ids=_inputs_of(self.config, input_ids, labels),
            attention_mask=attention_mask,
            encoder_hidden_states=image,
            labels=labels,
            reduction=reduction,
            **kwargs,
        )
        return MPlugOutput(image_states=image, **outputs)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        search: str = "transformers",
        interpolate_pos_encoding: bool = False,
        **options: Any,
    ) -> Any:
        """Write about images.

        Args:
            pixel_values: (B, 3, h, w).
            input_ids: (B, P), what the texts begin with, ``[CLS]`` first; default: ``[CLS]``.
            attention_mask: (B, P), 0 for padding, which must be on the left.
            image_states: (B, N, d), in place of ``pixel_values``.
            search: "transformers", whose generate() takes the options; or "official", the beam search of the
                published code (`official_beam_search`), with ``num_beams`` 5, ``length_penalty`` 0.6, and 8 to 25 new
                tokens unless ``min_new_tokens`` and ``max_new_tokens`` say otherwise.
            interpolate_pos_encoding: whether images may have another size than the model's.
            **options: of the search.

        Returns:
            Ids (B, P + new), the prompt included; with ``return_dict_in_generate`` what the search returns.

        Raises:
            UserError: without an image, and for options that the search does not have.
        """
        image = self._images(pixel_values, image_states, interpolate_pos_encoding)
        return self._search(search, input_ids, attention_mask, image, None, options)


class MPlugForQuestionAnswering(SearchingModel, MPlugModel, GenerationMixin):
    """Answers questions: the decoder attends to image tokens and question as the fusion network leaves them."""

    _tied_weights_keys = _TIED
    _keys_to_ignore_on_load_unexpected = None
    official_lengths = (1, 10)

    def __init__(self, config: MPlugConfig) -> None:
        super().__init__(config)
        self.text_decoder = MPlugTextDecoder(config.text_config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        answer_counts: torch.Tensor | None = None,
        answer_weights: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        reduction: str = "image",
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> MPlugOutput:
        """Score S answers to B questions.

        Args:
            pixel_values: (B, 3, h, w).
            input_ids: (B, Q), the questions: ``[CLS] question``.
            attention_mask: (B, Q), 0 for padding; None: no padding.
            decoder_input_ids: (S, L), ``[CLS] answer [SEP]``; default: the labels.
            decoder_attention_mask: (S, L), 0 for padding; None: no padding, or padding on the right.
            labels: (S, L), aligned with ``decoder_input_ids``; -100 is left out.
            answer_counts: (B,), how many answers each question has, in order; default: one.
            answer_weights: (S,), default 1.
            image_states: (B, N, d), in place of ``pixel_values``.
            reduction: "image": the cross entropy summed over the tokens of an answer, times its weight, summed, divided
                by B; or "none": the sums of each answer, unweighted.
            interpolate_pos_encoding: whether images may have another size than the model's.
            **kwargs: for the decoder, e.g. ``output_attentions`` or ``past_key_values``.

        Returns:
            ``loss``, () or (S,), with labels; ``logits`` (S, L, V); ``image_states`` (B, N, d) and ``text_states``
            (B, Q, d) of the fusion network.

        Raises:
            UserError: without image, question or answer, for another reduction, and if counts and answers disagree.
        """
        if reduction not in ("image", "none"):
            raise UserError(f"reduction {reduction!r} is not one of image, none.")
        image, text, states, mask = self._read(
            pixel_values, image_states, input_ids, attention_mask, interpolate_pos_encoding
        )
        answers = _inputs_of(self.config, decoder_input_ids, labels)
        if answer_counts is not None:
            if int(answer_counts.sum()) != answers.shape[0] or len(answer_counts) != len(states):
                raise UserError(
                    f"answer_counts has {len(answer_counts)} entries that sum to {int(answer_counts.sum())}, and there "
                    f"are {len(states)} questions and {answers.shape[0]} answers."
                )
            owners = torch.arange(len(states), device=states.device).repeat_interleave(answer_counts.to(states.device))
            states, mask = states[owners], None if mask is None else mask[owners]
        elif answers.shape[0] != states.shape[0]:
            raise UserError(
                f"{answers.shape[0]} answers for {states.shape[0]} questions: pass answer_counts, or one for each."
            )
        outputs = self.text_decoder(
            input_ids=answers,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            labels=labels,
            reduction="none",
            **kwargs,
        )
        if outputs.loss is not None and reduction == "image":
            weights = 1 if answer_weights is None else answer_weights.to(outputs.loss)
            outputs.loss = (weights * outputs.loss).sum() / image.shape[0]
        return MPlugOutput(image_states=image, text_states=text, **outputs)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        search: str = "transformers",
        interpolate_pos_encoding: bool = False,
        **options: Any,
    ) -> Any:
        """Answer questions.

        Args:
            pixel_values: (B, 3, h, w).
            input_ids: (B, Q), the questions.
            attention_mask: (B, Q), 0 for padding; None: no padding.
            decoder_input_ids: (B, P), what the answers begin with, ``[CLS]`` first; default: ``[CLS]``.
            decoder_attention_mask: (B, P), 0 for padding, which must be on the left.
            image_states: (B, N, d), in place of ``pixel_values``.
            search: as for `MPlugForConditionalGeneration.generate`; the official one writes 1 to 10 tokens.
            interpolate_pos_encoding: whether images may have another size than the model's.
            **options: of the search.

        Returns:
            Ids (B, P + new) from ``[CLS]`` on; with ``return_dict_in_generate`` what the search returns.

        Raises:
            UserError: without image or question, and for options that the search does not have.
        """
        _, _, states, mask = self._read(pixel_values, image_states, input_ids, attention_mask, interpolate_pos_encoding)
        return self._search(search, decoder_input_ids, decoder_attention_mask, states, mask, options)

    def _read(
        self,
        pixel_values: torch.Tensor | None,
        image_states: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        interpolate: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Fused image states, fused text states, both one after the other (B, N + Q, d), and the mask for these."""
        if input_ids is None:
            raise UserError("pass input_ids, the questions; a caption needs none: MPlugForConditionalGeneration.")
        image, text = self.fuse(self._images(pixel_values, image_states, interpolate), input_ids, attention_mask)
        mask = None
        if attention_mask is not None:
            mask = torch.cat([attention_mask.new_ones(image.shape[:2]), attention_mask], dim=1)
        return image, text, torch.cat([image, text], dim=1), mask


def _inputs_of(config: MPlugConfig, input_ids: torch.Tensor | None, labels: torch.Tensor | None) -> torch.Tensor:
    """What the decoder reads: given, or the labels with padding where they are left out."""
    if input_ids is not None:
        return input_ids
    if labels is None:
        raise UserError("pass the decoder's input ids, or labels.")
    return labels.masked_fill(labels == -100, config.text_config.pad_token_id)
