"""BLIP in its captioning arrangement: an image tower and one text decoder that cross-attends to it.

Every task is "given image and prompt, continue". Text is ``[DEC] prompt target [SEP]``; see
:mod:`padapter.backbones.cross_attending`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipProcessor, GenerationConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from padapter.architectures.blip import use_attention
from padapter.architectures.positions import resize_table
from padapter.backbones.base import Part, unwrapped
from padapter.backbones.cross_attending import CrossAttendingBackbone, Reading
from padapter.backbones.square_pictures import check_processor, check_side
from padapter.backbones.training_module import Attended, Fields
from padapter.backbones.weights import load_whole, loading


class BlipBackbone(CrossAttendingBackbone):
    """``BlipForConditionalGeneration`` with its processor.

    Args:
        model: The model.
        processor: A ``BlipProcessor``.
        name: The model id or folder the user gave.
        max_length: Longest text sequence; default: all positions of the decoder.

    Raises:
        UserError: If tokenizer, image processor and model do not belong together.
    """

    parts: Mapping[Part, str] = {"text": "text_decoder", "image": "vision_model"}
    projections: Mapping[Part, tuple[str, ...]] = {"text": ("query", "value"), "image": ("qkv",)}
    decoder_inputs: Mapping[str, Any] = {"is_decoder": True}

    def __init__(self, model: nn.Module, processor: Any, name: str, max_length: int | None = None) -> None:
        super().__init__(model, processor, name, max_length)
        text, tokenizer = unwrapped(model).config.text_config, processor.tokenizer
        self.start_id = int(text.bos_token_id)
        self.end_id = int(text.sep_token_id)
        self.pad_id = int(text.pad_token_id)
        roles = (("end", self.end_id, tokenizer.sep_token_id), ("padding", self.pad_id, tokenizer.pad_token_id))
        check_processor(unwrapped(model).config, processor, name, roles)

    @classmethod
    def build(cls, config: Any, *, asks: bool = True) -> nn.Module:
        """See :meth:`Backbone.build`."""
        return BlipForConditionalGeneration(config)

    @classmethod
    def load(
        cls, path: str | Path, *, name: str, dtype: torch.dtype, attention: str = "sdpa", asks: bool | None = None
    ) -> BlipBackbone:
        """See :meth:`Backbone.load`."""
        model = load_whole(
            BlipForConditionalGeneration,
            path,
            name,
            dtype=dtype,
            is_not="is not a BLIP captioning model (image tower and text decoder)",
            unread="of BLIP, image tower and text decoder are adapted.",
        )
        with loading(name):
            # The PIL version, also where torchvision is installed: its resize differs in the last digits, and the
            # same picture should give the same score on every machine.
            processor = BlipProcessor(
                image_processor=BlipImageProcessorPil.from_pretrained(path),
                tokenizer=AutoTokenizer.from_pretrained(path),
            )
        use_attention(model, attention)
        return cls(model, processor, name)

    @classmethod
    def attended(cls, model: Any, states: torch.Tensor, fields: Fields) -> Attended:
        """See :meth:`CrossAttendingBackbone.attended`: the image."""
        return states, None

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
        """See :meth:`CrossAttendingBackbone.search`: that of transformers; ``length_penalty`` is 1 if nobody says."""
        config = GenerationConfig(
            do_sample=False,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            length_penalty=1.0 if length_penalty is None else length_penalty,
            bos_token_id=self.start_id,
            eos_token_id=self.end_id,
            pad_token_id=self.pad_id,
        )
        # The decoder's own generate: BlipForConditionalGeneration.generate drops the last column of every
        # prompt and ignores left padding. Image states are not read again, but say that there is an image.
        output: torch.Tensor = self.decoder.generate(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=reading.states[reading.place],
            past_key_values=reading.cache(num_beams),
            generation_config=config,
        )
        return output[:, ids.shape[1] :]

    def set_image_size(self, side: int) -> None:
        """See :meth:`SquarePictures.set_image_size`."""
        resize_positions(self.base_model, side)


def resize_positions(blip: Any, side: int) -> None:
    """Make the image tower see pictures of another size.

    Its position embeddings (1, 1 + g g, d) become (1, 1 + g' g', d): the class token's stays, the others are
    interpolated on their grid with bicubic weights, ``align_corners=False`` and no smoothing, as published loaders do.

    Args:
        blip: ``BlipForConditionalGeneration``.
        side: width and height in pixels.

    Raises:
        UserError: if the side is no multiple of a patch.
    """
    config, embeddings = blip.config.vision_config, blip.vision_model.embeddings
    patch = int(config.patch_size)
    check_side(side, patch)
    grid, old = side // patch, embeddings.position_embedding
    before = int(config.image_size) // patch
    if grid != before:
        with torch.no_grad():
            new = resize_table(old, grid, mode="bicubic")
        embeddings.position_embedding = nn.Parameter(new, requires_grad=old.requires_grad)
    embeddings.image_size = config.image_size = blip.vision_model.config.image_size = side
    embeddings.num_patches = grid**2
    embeddings.num_positions = grid**2 + 1
