"""Encoder-decoders of transformers that see: the encoder reads picture and prompt, the decoder writes the answer.

The decoder's text is ``[start] answer [end]`` with the model's own start token, followed by the token that the model is
told to begin with if there is one (BART's ``forced_bos_token_id``). Both are given and carry no loss, as when the model
writes.

Some encoders read no text. A prompt is then written over the picture if the model was trained so (Pix2Struct's header);
otherwise nothing can be asked, and a prompt that only leads in is what the decoder begins with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    VisionTextDualEncoderProcessor,
)

from padapter.backbones.base import LossReduction, unwrapped
from padapter.backbones.continuations import encoded, writer_of
from padapter.backbones.image_text import ImageTextTrainingModule
from padapter.backbones.losses import labelled
from padapter.backbones.processed import Encoded, ProcessedBackbone
from padapter.backbones.sequences import IGNORE, pad_right
from padapter.data import Picture, opened
from padapter.errors import UserError

#: What the encoder reads beside the picture, by ``config.model_type``: a text; a header over the picture, if the image
#: processor says that the model was trained with headers (``is_vqa``); nothing.
KINDS: Mapping[str, Literal["text", "header", "nothing"]] = MappingProxyType(
    {
        "blip-2": "text",
        "florence2": "text",
        "instructblip": "text",
        "pix2struct": "header",
        "vision-encoder-decoder": "nothing",
    }
)
#: What captions follow where nobody says otherwise, of models that read prompts and are used to one.
_LEAD_INS = {"florence2": "<CAPTION>"}
#: Fields of a batch that stand for what the encoder reads, where their names are those of the text that is written.
_ENCODER = {"input_ids": "encoder_input_ids", "attention_mask": "encoder_attention_mask"}
_IDS, _MASK = "decoder_input_ids", "decoder_attention_mask"


def is_encoder_decoder(config: Any) -> bool:
    """Whether a configuration of transformers describes an encoder-decoder, or a model around one."""
    return any(getattr(part, "is_encoder_decoder", False) for part in (config, config.get_text_config()))


class EncoderDecoderTraining(ImageTextTrainingModule):
    """Batch of :meth:`EncoderDecoderBackbone.collate` -> loss and logits; arguments as of the base class."""

    def predicted(self, labels: torch.Tensor, image_index: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Logits (K, V) that predict the tokens with a label.

        The first answer about each picture is read in a pass of the whole model; the others are read behind the
        encoder's states of that pass.
        """
        text = {_IDS: inputs.pop("input_ids")[:, :-1], _MASK: inputs.pop("attention_mask")[:, :-1]}
        fields = {name: inputs.pop(field) for name, field in _ENCODER.items() if field in inputs} | inputs
        opening = torch.ones_like(image_index, dtype=torch.bool)
        opening[1:] = image_index[1:] != image_index[:-1]
        read = self.model(**fields, **_rows(text, opening), use_cache=False)
        row, column = labelled(labels)
        at_opening = opening[row]
        found: torch.Tensor = read.logits[image_index[row[at_opening]], column[at_opening]]
        if bool(opening.all()):
            return found
        writer, output = writer_of(unwrapped(self.model), read)
        others = image_index[~opening]
        mask = fields.get("attention_mask")
        again = encoded(output.encoder_last_hidden_state[others], None if mask is None else mask[others])
        more = writer(**again, **_rows(text, ~opening), use_cache=False).logits
        place = (~opening).cumsum(0) - 1
        logits = found.new_empty(len(row), found.shape[1])
        logits[at_opening] = found
        logits[~at_opening] = more[place[row[~at_opening]], column[~at_opening]]
        return logits


class EncoderDecoderBackbone(ProcessedBackbone):
    """An encoder-decoder of one of the `KINDS`.

    ``max_length`` bounds what the encoder reads, image tokens included, and what the decoder has of text.

    Args:
        model: The model.
        processor: Its processor.
        name: The model id or folder the user gave.
        max_length: See above; default: all positions of the decoder.

    Raises:
        UserError: If the model is of another kind, has no start token, or its processor has no end token.
    """

    written = MappingProxyType({_IDS: 0, _MASK: 1})

    def __init__(self, model: nn.Module, processor: Any, name: str, max_length: int | None = None) -> None:
        super().__init__(model, processor, name, max_length)
        _check_kind(self.kind, name)
        self.reads_prompts = _reads_prompts(self.kind, processor)
        self.lead_in = _LEAD_INS.get(self.kind) if self.reads_prompts else ""
        base: Any = unwrapped(model)
        inner: Any = getattr(base, "language_model", None)  # BLIP-2 has a whole one
        habits = (inner if hasattr(inner, "generation_config") else base).generation_config
        start = getattr(habits, "decoder_start_token_id", None)
        if start is None:
            raise UserError(
                f"model '{name}' does not say what its decoder's texts begin with. Set decoder_start_token_id in its "
                "config.json or generation_config.json."
            )
        forced = getattr(habits, "forced_bos_token_id", None)
        self.given = [int(start)] if forced is None else [int(start), int(forced)]

    @classmethod
    def load_processor(cls, path: str | Path) -> Any:
        """See :meth:`ProcessedBackbone.load_processor`; older checkpoints hold its two halves apart."""
        found = AutoProcessor.from_pretrained(path)
        if hasattr(found, "image_processor") and hasattr(found, "tokenizer"):
            return found
        return VisionTextDualEncoderProcessor(
            AutoImageProcessor.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        )

    @classmethod
    def check(cls, config: Any, processor: Any, name: str, asks: bool | None) -> None:
        """See :meth:`ProcessedBackbone.check`."""
        _check_kind(config.model_type, name)
        if not asks or _reads_prompts(config.model_type, processor):
            return
        why = "reads a picture and no text"
        if KINDS[config.model_type] == "header":
            why = "was not trained with questions over its pictures (is_vqa in its preprocessor_config.json)"
        raise UserError(f"model '{name}' {why}, so that nothing can be asked; it can be trained to write captions.")

    def read(self, image: Image.Image | Picture, prompt: str) -> Encoded:
        """See :meth:`ProcessedBackbone.read`."""
        question, lead_in = (prompt, "") if self.reads_prompts else ("", prompt)
        if KINDS[self.kind] == "text":
            fields = self._encode(image, question)
            tokens = fields["input_ids"].shape[1]
            if tokens > self.max_length:
                raise UserError(
                    f"no room: a prompt with its image tokens has {tokens} tokens, but '{self.name}' reads "
                    f"{self.max_length} (max_length). Ask with shorter prompts."
                )
        else:
            fields = self._seen(image, question)
        text = torch.tensor([[*self.given, *self._ids(lead_in)]])
        return {**fields, _IDS: text, _MASK: torch.ones_like(text)}

    def batch(self, prompts: Sequence[Encoded], owners: Sequence[int], answers: Sequence[list[int]]) -> Encoded:
        """See :meth:`ProcessedBackbone.batch`.

        The text is the decoder's. What the encoder reads has one entry per picture: ``encoder_input_ids`` (I, P) and
        ``encoder_attention_mask`` (I, P), and whatever else the processor makes.
        """
        read = self.together(prompts, left=False)
        given = [prompts[owner][_IDS][0].tolist() for owner in owners]
        texts = [[*start, *answer] for start, answer in zip(given, answers, strict=True)]
        labels = [[IGNORE] * len(start) + answer for start, answer in zip(given, answers, strict=True)]
        return {
            **{_ENCODER.get(name, name): value for name, value in read.items() if name not in self.written},
            "input_ids": pad_right(texts, self.pad_id),
            "attention_mask": pad_right([[1] * len(text) for text in texts], 0),
            "labels": pad_right(labels, IGNORE),
        }

    def prompt_ids(self, batch: Mapping[str, torch.Tensor]) -> list[int]:
        """See :meth:`Backbone.prompt_ids`: what the encoder reads, and what the decoder begins with."""
        return [*self.question_ids(batch), *super().prompt_ids(batch)]

    def question_ids(self, batch: Mapping[str, torch.Tensor]) -> list[int]:
        """See :meth:`Backbone.question_ids`; image tokens are among them."""
        ids, mask = (batch.get(field) for field in _ENCODER.values())
        return [] if ids is None or mask is None else list(ids[0][mask[0].bool()].tolist())

    def token_masks(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See :meth:`Backbone.token_masks`; what stands last in a row the decoder only foresees."""
        masks = {"decoder": batch["attention_mask"][:, 1:]}
        read = batch.get(_ENCODER["attention_mask"])
        return masks if read is None else {**masks, "text_encoder": read}

    def training_module(self, loss_reduction: LossReduction) -> nn.Module:
        """See :meth:`Backbone.training_module`."""
        return EncoderDecoderTraining(self.model, loss_reduction)

    def search(self, rows: Sequence[Encoded], config: GenerationConfig) -> list[list[int]]:
        """See :meth:`ProcessedBackbone.search`; texts that begin alike are written together, so that none is padded."""
        config.decoder_start_token_id = self.given[0]
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault(tuple(row[_IDS][0].tolist()), []).append(place)
        found: dict[int, list[int]] = {}
        for given, places in groups.items():
            inputs = self.to_device(self.together([rows[place] for place in places], left=False))
            del inputs[_MASK]
            output = self.base_model.generate(**inputs, generation_config=config)
            found |= zip(places, output[:, len(given) :].tolist(), strict=True)
        return [found[place] for place in range(len(rows))]

    def _seen(self, image: Image.Image | Picture, header: str) -> Encoded:
        """What the image processor makes of a picture, with a header over it if the model reads headers."""
        how = {"header_text": [header]} if self.reads_prompts else {}
        try:
            fields = self.processor.image_processor([opened(image)], return_tensors="pt", **how)
        except OSError as error:
            raise UserError(
                f"model '{self.name}' reads prompts as headers over the picture, and the font for them cannot be had "
                f"({str(error).strip().splitlines()[0]}). Let it be fetched from the hub once."
            ) from error
        return dict(fields)


def _rows(fields: Encoded, which: torch.Tensor) -> Encoded:
    return {name: value[which] for name, value in fields.items()}


def _check_kind(kind: str, name: str) -> None:
    if kind not in KINDS:
        raise UserError(
            f"model '{name}' is an encoder-decoder of type '{kind}', and what its encoder reads is not known here. "
            f"Encoder-decoders that can be asked: {', '.join(KINDS)}. In Python the adapters go into any of them."
        )


def _reads_prompts(kind: str, processor: Any) -> bool:
    return KINDS[kind] == "text" or (KINDS[kind] == "header" and bool(processor.image_processor.is_vqa))
