"""mPLUG's models: image and text features, captioning, question answering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from padapter.errors import UserError
from padapter.models.mplug.beam_search import official_beam_search
from padapter.models.mplug.configuration import MPlugConfig
from padapter.models.mplug.fusion import MPlugFusionEncoder
from padapter.models.mplug.text import MPlugTextDecoder, MPlugTextModel
from padapter.models.mplug.vision import MPlugVisionModel, init_class_embedding

SEARCHES = ("transformers", "official")
#: What the official search takes, besides the model's own inputs.
OFFICIAL_OPTIONS = (
    "num_beams",
    "length_penalty",
    "min_new_tokens",
    "max_new_tokens",
    "use_cache",
    "return_dict_in_generate",
)


@dataclass
class MPlugOutput(ModelOutput):
    """What a model returns; fields it does not compute are None.

    Attributes:
        loss: see the model's ``forward``.
        logits: (S, L, V), of the decoder.
        image_states: (B, N, d), of the image encoder, or as the fusion network leaves them.
        text_states: (B, L, d), of the fusion network.
        past_key_values: the decoder's cache.
        hidden_states: the decoder's, if asked for.
        attentions: its self-attention weights, if asked for.
        cross_attentions: its cross-attention weights, if asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    image_states: torch.Tensor | None = None
    text_states: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


class MPlugBridge(nn.Module):
    """Image states of another width, made as wide as the text's: (B, N, d_image) -> (B, N, d). ViT-L needs it."""

    def __init__(self, config: MPlugConfig) -> None:
        super().__init__()
        text = config.text_config
        self.dense = nn.Linear(config.vision_config.hidden_size, text.hidden_size)
        self.LayerNorm = nn.LayerNorm(text.hidden_size, eps=text.layer_norm_eps)
        self.dropout = nn.Dropout(text.hidden_dropout_prob)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Project and norm."""
        return self.dropout(self.LayerNorm(self.dense(states)))


class MPlugPreTrainedModel(PreTrainedModel):
    """What the models have in common: the image encoder."""

    config: MPlugConfig
    config_class = MPlugConfig
    base_model_prefix = "mplug"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = (
        "MPlugVisionEmbeddings",
        "MPlugVisionLayer",
        "MPlugTextEmbeddings",
        "MPlugTextLayer",
        "MPlugCoAttentionLayer",
        "MPlugConnectedLayer",
    )
    _skip_keys_device_placement = ("past_key_values",)

    def __init__(self, config: MPlugConfig) -> None:
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.vision_model = MPlugVisionModel(vision)
        self.bridge = MPlugBridge(config) if vision.hidden_size != text.hidden_size else None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_class_embedding(module)

    def set_image_size(self, size: int) -> None:
        """Interpolate the position embeddings to another image size, for good; see `MPlugVisionModel`."""
        self.vision_model.set_image_size(size)

    def encode_images(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> torch.Tensor:
        """Images (B, 3, h, w) -> image states (B, N, d), as wide as the text's."""
        states = self.vision_model(pixel_values, interpolate_pos_encoding, **kwargs).last_hidden_state
        return states if self.bridge is None else self.bridge(states)

    def _images(
        self, pixel_values: torch.Tensor | None, image_states: torch.Tensor | None, interpolate: bool
    ) -> torch.Tensor:
        if (pixel_values is None) == (image_states is None):
            raise UserError("pass either pixel_values or image_states.")
        return image_states if pixel_values is None else self.encode_images(pixel_values, interpolate)  # type: ignore[return-value]


class MPlugModel(MPlugPreTrainedModel):
    """Image encoder, text encoder and fusion network, without the decoder."""

    _keys_to_ignore_on_load_unexpected: Any = (r"^text_decoder\.",)

    def __init__(self, config: MPlugConfig) -> None:
        super().__init__(config)
        self.text_encoder = MPlugTextModel(config.text_config)
        self.fusion_encoder = MPlugFusionEncoder(config.text_config)
        if type(self) is MPlugModel:
            self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings of the text encoder."""
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace them."""
        self.text_encoder.set_input_embeddings(value)

    def fuse(
        self, image_states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read a question about an image.

        Args:
            image_states: (B, N, d), from `encode_images`.
            input_ids: (B, L), the question.
            attention_mask: (B, L), 0 for padding; None: no padding.

        Returns:
            Image states (B, N, d) and text states (B, L, d) of the fusion network.
        """
        read = self.text_encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        text, image = self.fusion_encoder(read, image_states, attention_mask)
        return image, text

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> MPlugOutput:
        """Encode image and question: ``image_states`` (B, N, d) and ``text_states`` (B, L, d), after fusion.

        Args:
            pixel_values: (B, 3, h, w).
            input_ids: (B, L), the question; None: the image is encoded and nothing fused.
            attention_mask: (B, L), 0 for padding; None: no padding.
            image_states: (B, N, d), in place of ``pixel_values``.
            interpolate_pos_encoding: whether images may have another size than the model's.
            **kwargs: ignored.

        Raises:
            UserError: without an image, and for images of another size.
        """
        image = self._images(pixel_values, image_states, interpolate_pos_encoding)
        if input_ids is None:
            return MPlugOutput(image_states=image)
        image, text = self.fuse(image, input_ids, attention_mask)
        return MPlugOutput(image_states=image, text_states=text)


class _WithDecoder(GenerationMixin):
    """What captioning and question answering have in common: the decoder, and how it is searched."""

    text_decoder: MPlugTextDecoder
    config: Any
    generation_config: Any
    #: least and most new tokens of the published evaluation
    official_lengths: tuple[int, int]

    def get_output_embeddings(self) -> nn.Module:
        """The linear layer that makes logits."""
        return self.text_decoder.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace that layer."""
        self.text_decoder.set_output_embeddings(new_embeddings)

    def _search(
        self,
        search: str,
        prompt_ids: torch.Tensor | None,
        prompt_mask: torch.Tensor | None,
        states: torch.Tensor,
        states_mask: torch.Tensor | None,
        options: dict[str, Any],
    ) -> Any:
        """Let the decoder write; see ``generate`` of the models."""
        if search not in SEARCHES:
            raise UserError(f"search {search!r} is not one of {', '.join(SEARCHES)}.")
        text = self.config.text_config
        if prompt_ids is None:
            prompt_ids = torch.full((states.shape[0], 1), text.bos_token_id, device=states.device)
        if search == "official":
            return self._official(prompt_ids, prompt_mask, states, states_mask, options)
        # The decoder is what transformers searches; the settings are those saved with the whole model.
        self.text_decoder.generation_config = self.generation_config
        return self.text_decoder.generate(
            input_ids=prompt_ids,
            attention_mask=torch.ones_like(prompt_ids) if prompt_mask is None else prompt_mask,
            encoder_hidden_states=states,
            encoder_attention_mask=states_mask,
            **options,
        )

    def _official(
        self,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor | None,
        states: torch.Tensor,
        states_mask: torch.Tensor | None,
        options: dict[str, Any],
    ) -> Any:
        unknown = sorted(set(options) - set(OFFICIAL_OPTIONS))
        if unknown:
            raise UserError(
                f'search="official" has no option {", ".join(unknown)}; it takes {", ".join(OFFICIAL_OPTIONS)}.'
            )
        text = self.config.text_config
        least, most = self.official_lengths
        wants_dict = options.pop("return_dict_in_generate", False)
        result = official_beam_search(
            self.text_decoder,
            states,
            states_mask,
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            end_id=text.eos_token_id,
            pad_id=text.pad_token_id,
            **{"min_new_tokens": least, "max_new_tokens": most, **options},
        )
        return result if wants_dict else result.sequences


_TIED = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
}


class MPlugForConditionalGeneration(_WithDecoder, MPlugPreTrainedModel, GenerationMixin):
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


class MPlugForQuestionAnswering(_WithDecoder, MPlugModel, GenerationMixin):
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
