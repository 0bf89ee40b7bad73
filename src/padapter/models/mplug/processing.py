"""mPLUG's processor: pictures to pixels, questions and answers to ids, ids to answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import ProcessorMixin
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil


class MPlugProcessor(ProcessorMixin):
    """An image processor and a tokenizer.

    ``processor(images=..., text=...)`` gives ``pixel_values`` (B, 3, size, size), and ``input_ids`` and
    ``attention_mask`` (B, L) of questions, or of what captions begin with.

    Args:
        image_processor: see `image_processor`.
        tokenizer: `MPlugTokenizer`.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer)

    def targets(self, texts: Sequence[str], *, max_length: int | None = None) -> dict[str, torch.Tensor]:
        """What the decoder is to write: ``[CLS] text [SEP]``, padded on the right.

        Args:
            texts: S texts, without ``[SEP]``.
            max_length: longest sequence in ids, ``[CLS]`` included; what is longer loses its end, ``[SEP]`` too.

        Returns:
            ``decoder_input_ids`` (S, L), ``decoder_attention_mask`` (S, L), and ``labels`` (S, L), -100 on padding.
            For `MPlugForConditionalGeneration` the first two are ``input_ids`` and ``attention_mask``.
        """
        tokenizer = self.tokenizer
        ending = "" if tokenizer.trailing_sep else f" {tokenizer.sep_token}"
        read = tokenizer(
            [text + ending for text in texts],
            padding=True,
            padding_side="right",
            truncation=max_length is not None,
            max_length=max_length,
            return_tensors="pt",
        )
        ids, mask = read["input_ids"], read["attention_mask"]
        return {
            "decoder_input_ids": ids,
            "decoder_attention_mask": mask,
            "labels": ids.masked_fill(mask == 0, -100),
        }

    def decode_answers(self, sequences: Any) -> list[str]:
        """Texts of ids (B, L) that a model wrote.

        As in the published evaluation: "don ' t" becomes "don't", and ``[SEP]``, ``[CLS]`` and ``[PAD]`` are taken out
        of the text; other special tokens stay.
        """
        tokenizer = self.tokenizer
        texts = []
        for row in sequences:
            text = tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=True)
            for token in (tokenizer.sep_token, tokenizer.cls_token, tokenizer.pad_token):
                text = text.replace(token, "")
            texts.append(text.strip())
        return texts


def image_processor(size: int) -> BlipImageProcessorPil:
    """The image processor of the published evaluation.

    A picture is resized to ``size`` x ``size`` pixels whatever its shape (bicubic, by Pillow, so that it gives the same
    numbers with and without torchvision), and normed by CLIP's means and deviations. BLIP's does the same.
    """
    return BlipImageProcessorPil(size={"height": size, "width": size})
