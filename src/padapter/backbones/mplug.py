"""mPLUG: an image encoder, an encoder that reads questions with the image, and a text decoder.

Two arrangements of one model. A question is read by text encoder and fusion network, and the decoder, which attends to
image and question as these leave them, writes the answer. Where nothing is asked (captions), the decoder attends to the
image alone, and text encoder and fusion network are not loaded; a prompt is then what the decoder begins with, and by
default there is none. The decoder is searched as the published code does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from padapter.backbones.base import Part, unwrapped
from padapter.backbones.cross_attending import CrossAttendingBackbone, Reading
from padapter.backbones.sequences import pad_right
from padapter.backbones.square_pictures import check_processor, check_side
from padapter.backbones.training_module import Attended, Fields
from padapter.backbones.weights import load_whole, loading
from padapter.errors import UserError
from padapter.models.mplug import (
    MPlugForConditionalGeneration,
    MPlugForQuestionAnswering,
    MPlugProcessor,
    official_beam_search,
)

#: Exponent of the published evaluation.
LENGTH_PENALTY = 0.6
QUESTIONS, QUESTION_MASK = "question_ids", "question_mask"


class MPlugBackbone(CrossAttendingBackbone):
    """``MPlugForQuestionAnswering`` or ``MPlugForConditionalGeneration`` with its processor.

    ``max_length`` holds for a question as for what the decoder reads and writes.

    Args:
        model: The model.
        processor: An ``MPlugProcessor``.
        name: The model id or folder the user gave.
        max_length: Longest text sequence; default: all positions of the decoder.

    Raises:
        UserError: If tokenizer, image processor and model do not belong together.
    """

    parts: Mapping[Part, str] = {"text": "text_decoder", "image": "vision_model"}
    projections: Mapping[Part, tuple[str, ...]] = {"text": ("query", "value"), "image": ("q_proj", "v_proj")}
    captions_apart = True
    lead_in = ""

    def __init__(self, model: nn.Module, processor: Any, name: str, max_length: int | None = None) -> None:
        super().__init__(model, processor, name, max_length)
        text, tokenizer = unwrapped(model).config.text_config, processor.tokenizer
        self.start_id = int(text.bos_token_id)
        self.end_id = int(text.eos_token_id)
        self.pad_id = int(text.pad_token_id)
        roles = (
            ("start", self.start_id, tokenizer.cls_token_id),
            ("end", self.end_id, tokenizer.sep_token_id),
            ("padding", self.pad_id, tokenizer.pad_token_id),
        )
        check_processor(unwrapped(model).config, processor, name, roles)

    @classmethod
    def build(cls, config: Any, *, asks: bool = True) -> nn.Module:
        """See :meth:`Backbone.build`."""
        return (MPlugForQuestionAnswering if asks else MPlugForConditionalGeneration)(config)

    @classmethod
    def load(
        cls, path: str | Path, *, name: str, dtype: torch.dtype, attention: str = "sdpa", asks: bool | None = None
    ) -> MPlugBackbone:
        """See :meth:`Backbone.load`."""
        captioner = _is_captioner(path, name)
        if asks and captioner:
            raise UserError(
                f"model '{name}' is an mPLUG for captions: it was saved without text encoder and fusion network, which "
                "read questions. Give a folder of the whole model, as `padapter convert mplug` writes it unless "
                "--arrangement caption is given."
            )
        if asks is None:
            asks = not captioner
        model = load_whole(
            MPlugForQuestionAnswering if asks else MPlugForConditionalGeneration,
            path,
            name,
            dtype=dtype,
            is_not=f"is not a whole mPLUG for {'questions' if asks else 'captions'}",
            unread="it is no part of mPLUG.",
            attn_implementation=attention,
        )
        with loading(name):
            # Not AutoProcessor: pictures are resized by Pillow on every machine, see `BlipBackbone.load`.
            processor = MPlugProcessor(BlipImageProcessorPil.from_pretrained(path), AutoTokenizer.from_pretrained(path))
        return cls(model, processor, name)

    @property
    def asks(self) -> bool:
        """Whether this is the arrangement that reads questions."""
        return isinstance(self.base_model, MPlugForQuestionAnswering)

    @property
    def auto_class(self) -> str:
        """See :meth:`Backbone.auto_class`."""
        return "AutoModelForVisualQuestionAnswering" if self.asks else super().auto_class

    def parted(self, prompt: str) -> tuple[str, str]:
        """See :meth:`CrossAttendingBackbone.parted`."""
        return (prompt, "") if self.asks else ("", prompt)

    @classmethod
    def question_fields(cls, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """See :meth:`CrossAttendingBackbone.question_fields`."""
        return {QUESTIONS: ids, QUESTION_MASK: mask} if isinstance(model, MPlugForQuestionAnswering) else {}

    def questions(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``question_ids`` and ``question_mask`` (R, L) of ``[CLS] question``, padded on the right.

        With ``[SEP]`` behind it if the tokenizer has it there (ModelScope's). Long questions lose their beginning.
        """
        if not self.asks:
            return {}
        ending = [self.end_id] if self.processor.tokenizer.trailing_sep else []
        room = self.max_length - 1 - len(ending)
        rows = [[self.start_id, *self._fitting(text, room), *ending] for text in texts]
        mask = pad_right([[1] * len(row) for row in rows], 0)
        return self.question_fields(self.base_model, pad_right(rows, self.pad_id), mask)

    def prompt_ids(self, batch: Mapping[str, torch.Tensor]) -> list[int]:
        """See :meth:`Backbone.prompt_ids`: the question, and what the decoder begins with."""
        return [*self.question_ids(batch), *super().prompt_ids(batch)]

    def question_ids(self, batch: Mapping[str, torch.Tensor]) -> list[int]:
        """See :meth:`Backbone.question_ids`."""
        if not self.asks:
            return []
        return list(batch[QUESTIONS][0][batch[QUESTION_MASK][0].bool()].tolist())

    def token_masks(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See :meth:`Backbone.token_masks`: text encoder and fusion network read the questions."""
        masks = super().token_masks(batch)
        return masks | dict.fromkeys(("text_encoder", "fusion"), batch[QUESTION_MASK]) if self.asks else masks

    @classmethod
    def attended(cls, model: Any, states: torch.Tensor, fields: Fields) -> Attended:
        """See :meth:`CrossAttendingBackbone.attended`: image, and question behind it, both (R, N + L, d) as fused."""
        if model.bridge is not None:
            states = model.bridge(states)
        if QUESTIONS not in fields:
            return states, None
        mask = fields[QUESTION_MASK]
        image, text = model.fuse(states, fields[QUESTIONS], mask)
        return torch.cat([image, text], dim=1), torch.cat([mask.new_ones(image.shape[:2]), mask], dim=1)

    def search(
        self,
        reading: Reading,
        ids: torch.Tensor,
        mask: torch.Tensor,
        *,
        num_beams: int,
        max_new_tokens: int,
        min_new_tokens: int,
        length_penalty: float | None,
    ) -> torch.Tensor:
        """See :meth:`CrossAttendingBackbone.search`: the published code's, which with one beam is a greedy search.

        Scores are divided by ((5 + length) / 6) to the power of ``length_penalty``, 0.6 if nobody says.
        """
        found = official_beam_search(
            self.decoder,
            reading.states[reading.place],
            None if reading.mask is None else reading.mask[reading.place],
            prompt_ids=ids,
            prompt_mask=mask,
            end_id=self.end_id,
            pad_id=self.pad_id,
            num_beams=num_beams,
            length_penalty=LENGTH_PENALTY if length_penalty is None else length_penalty,
            min_new_tokens=min_new_tokens,
            max_new_tokens=max_new_tokens,
            past_key_values=reading.cache(num_beams),
        )
        # A sequence has no padding on the left any more: what is new begins behind the row's own prompt.
        new = [row[length:].tolist() for row, length in zip(found.sequences, mask.sum(dim=1).tolist(), strict=True)]
        return pad_right(new, self.pad_id)

    def spoken(self, ids: torch.Tensor) -> list[str]:
        """See :meth:`CrossAttendingBackbone.spoken`; as in the published evaluation, "don ' t" becomes "don't"."""
        return list(self.processor.decode_answers(ids))

    def set_image_size(self, side: int) -> None:
        """See :meth:`SquarePictures.set_image_size`; position embeddings are interpolated bilinearly."""
        model = self.base_model
        check_side(side, int(model.config.vision_config.patch_size))
        model.set_image_size(side)
        model.config.vision_config.image_size = side


def _is_captioner(path: str | Path, name: str) -> bool:
    """Whether a folder was saved by the class that has no text encoder."""
    with loading(name):
        config, _ = PreTrainedConfig.get_config_dict(path)
    return MPlugForConditionalGeneration.__name__ in (config.get("architectures") or ())
