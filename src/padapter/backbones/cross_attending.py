"""Models with an image encoder and a text decoder that cross-attends to what was read: BLIP and mPLUG.

Text is ``[start] lead-in target [end]``; lead-in and target are tokenised separately, so that an answer's tokens do not
depend on the last word before it. What becomes of a prompt is the family's: BLIP's decoder is given all of it; mPLUG
reads questions with the image before the decoder begins.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers.cache_utils import EncoderDecoderCache

from padapter.backbones.base import LossReduction, TargetError, TrainingExample, evaluating, unwrapped
from padapter.backbones.features import FeatureCache
from padapter.backbones.image_memory import before_reading, of_rows, read_images
from padapter.backbones.ranking import continuation_log_probs, first_choices, passes, plant
from padapter.backbones.sequences import TokenSequence, join, keep_right, pad_left, training_tensors
from padapter.backbones.square_pictures import SquarePictures
from padapter.backbones.training_module import Attended, DecoderTraining, Fields
from padapter.data import ImageSource, Picture
from padapter.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """What was read for B rows; R distinct things, as several rows may be about one.

    Attributes:
        states: (R, N, d), what the decoder attends to.
        mask: (R, N), 1 where it may; None: everywhere.
        place: (B,), which of them belongs to each row.
        memory: keys and values of all R in every layer.
    """

    states: torch.Tensor
    mask: torch.Tensor | None
    place: torch.Tensor
    memory: Any

    def of(self, rows: slice | torch.Tensor) -> dict[str, torch.Tensor | None]:
        """Arguments of the decoder for some rows."""
        place = self.place[rows]
        mask = None if self.mask is None else self.mask[place]
        return {"encoder_hidden_states": self.states[place], "encoder_attention_mask": mask}

    def cache(self, copies: int = 1) -> EncoderDecoderCache:
        """A cache of texts that nobody has read yet, ``copies`` of each row one after the other."""
        return before_reading(self.memory, self.place.repeat_interleave(copies))


class CrossAttendingBackbone(SquarePictures):
    """What these families have in common. A family says what it reads (`attended`, `parted`), and how it searches.

    Args:
        model: The model.
        processor: Its image processor and tokenizer.
        name: The model id or folder the user gave.
        max_length: Longest text sequence; default: all positions of the decoder.

    Raises:
        UserError: if ``max_length`` exceeds the positions.
    """

    #: Ids of the tokens that start and end a text, and of padding.
    start_id: int
    end_id: int
    pad_id: int
    #: What the decoder is given in training beside text, states and masks.
    decoder_inputs: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, model: nn.Module, processor: Any, name: str, max_length: int | None = None) -> None:
        positions = int(unwrapped(model).config.text_config.max_position_embeddings)
        super().__init__(model, processor, name, positions if max_length is None else max_length)
        if not 2 <= self.max_length <= positions:
            raise UserError(f"max_length {max_length} must lie between 2 and {positions}, the positions of '{name}'.")
        self._tokenized: tuple[tuple[Any, int, tuple[str, ...]], list[list[int]]] | None = None

    @classmethod
    @abstractmethod
    def attended(cls, model: Any, states: torch.Tensor, fields: Fields) -> Attended:
        """What the decoder attends to.

        Args:
            model: without a PEFT wrapper; adapters may be injected.
            states: (R, N, d) of the image encoder.
            fields: those of :meth:`question_fields`, for R questions.
        """

    def parted(self, prompt: str) -> tuple[str, str]:
        """A prompt as what is read with the image, and the lead-in that the decoder is given."""
        return "", prompt

    @classmethod
    def question_fields(cls, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Fields of a batch that stand for questions (R, L) and their mask; nothing for models that read none."""
        return {}

    def questions(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The fields of R questions."""
        return {}

    @abstractmethod
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
        """Continue texts; the arguments are those of :meth:`generate`.

        Args:
            reading: what was read for B rows.
            ids: (B, P), what the texts begin with, padded on the left.
            mask: (B, P), 0 for padding.
            num_beams: see there.
            max_new_tokens: see there.
            min_new_tokens: see there.
            length_penalty: see there.

        Returns:
            (B, new) ids of the new tokens.
        """

    def spoken(self, ids: torch.Tensor) -> list[str]:
        """Texts of new tokens (B, new)."""
        return list(self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True))

    @property
    def decoder(self) -> Any:
        """The text decoder with its language-model head."""
        return self.base_model.get_submodule(self.parts["text"])

    def collate(self, examples: Sequence[TrainingExample]) -> dict[str, torch.Tensor]:
        """See :meth:`Backbone.collate`; fields of :meth:`questions` have one entry per image."""
        sequences: list[TokenSequence] = []
        owners: list[int] = []
        weights: list[float] = []
        parted = [self.parted(example.prompt) for example in examples]
        for index, (example, (_, lead_in)) in enumerate(zip(examples, parted, strict=True)):
            if not example.targets:
                raise ValueError(f"training example {index} (prompt {example.prompt!r}) has no target.")
            given = self._ids(lead_in)
            for text, weight in example.targets:
                sequences.append(self._sequence(given, text, weight))
                owners.append(index)
                weights.append(weight)
        return {
            **self._images([example.image for example in examples]),
            **self.questions([question for question, _ in parted]),
            "image_index": torch.tensor(owners, dtype=torch.long),
            **training_tensors(sequences, self.pad_id),
            "weights": torch.tensor(weights, dtype=torch.float32),
        }

    def training_module(self, loss_reduction: LossReduction) -> nn.Module:
        """See :meth:`Backbone.training_module`.

        The image encoder runs without a graph as long as none of its parameters (an adapter's included) is trained.
        """
        return DecoderTraining(self.model, self.parts["text"], self._read_batch, loss_reduction, self.decoder_inputs)

    def generate(
        self,
        images: Sequence[Image.Image | Picture],
        prompts: Sequence[str],
        *,
        num_beams: int = 1,
        max_new_tokens: int = 20,
        min_new_tokens: int = 0,
        length_penalty: float | None = None,
    ) -> list[str]:
        """See :meth:`Backbone.generate`."""
        if not _paired(images, prompts):
            return []
        with evaluating(self.model):
            reading, lead_ins = self._read(images, prompts)
            ids, mask = self._prompts(lead_ins, room=self.max_length - max_new_tokens)
            new = self.search(
                reading,
                ids,
                mask,
                num_beams=num_beams,
                max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens,
                length_penalty=length_penalty,
            )
        return [text.strip() for text in self.spoken(new)]

    def rank(
        self,
        images: Sequence[Image.Image | Picture],
        prompts: Sequence[str],
        candidates: Sequence[str],
        *,
        k: int | None = None,
        length_normalized: bool = False,
    ) -> list[list[float]]:
        """See :meth:`Backbone.rank`. Images, prompts and common beginnings of candidates are read once."""
        tokens = self._candidates(candidates)
        if k is not None and k < 1:
            raise UserError(f"k must be at least 1, not {k}.")
        if not _paired(images, prompts):
            return []
        with evaluating(self.model):
            decoder = self.decoder
            reading, lead_ins = self._read(images, prompts)
            ids, mask = self._prompts(lead_ins, room=self.max_length - max(map(len, tokens)))
            prefill = decoder(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(dim=1) - 1).clamp_min(0),
                **reading.of(slice(None)),
                past_key_values=reading.cache(),
                use_cache=True,
                logits_to_keep=torch.tensor(
                    [-1], device=self.device
                ),  # 1 would be a view, whose strides cost exactness
            )
            last = prefill.logits[:, -1]
            first = last.to(torch.promote_types(last.dtype, torch.float32)).log_softmax(dim=-1)
            first = first[:, [text[0] for text in tokens]]  # (B, C)
            if k is None or k >= len(tokens):
                trees = [plant(tokens, range(len(tokens)), self.end_id)] * len(prompts)
            else:
                trees = [plant(tokens, first_choices(row, k).tolist(), self.end_id) for row in first]
            scores = torch.full_like(first, float("-inf"))
            for rows, batch in passes(trees):
                cache = of_rows(prefill.past_key_values, rows)
                rest = continuation_log_probs(decoder, cache, mask[rows], batch, reading.of(rows), self.pad_id)
                for row, tree, found in zip(range(rows.start, rows.stop), batch, rest, strict=True):
                    scores[row, tree.candidates] = first[row, tree.candidates] + found
        if length_normalized:
            scores = scores / torch.tensor([len(text) + 1 for text in tokens], device=scores.device)
        return scores.tolist()

    def _ids(self, text: str) -> list[int]:
        """Token ids of plain text; a literal ``[SEP]`` in it is text, not a control token."""
        encoded = self.processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded.input_ids)

    def _fitting(self, text: str, room: int) -> list[int]:
        """Token ids of a prompt or a part of it, the last ``room`` of them; counted if it is cut."""
        tokens = self._ids(text)
        self.cut_prompts += len(tokens) > room
        return keep_right(tokens, room)

    def _candidates(self, candidates: Sequence[str]) -> list[list[int]]:
        """Token ids of all candidates; the last list is remembered, since a data set asks with the same one."""
        tokenizer = self.processor.tokenizer
        asked = (tokenizer, len(tokenizer), tuple(candidates))
        if self._tokenized is None or self._tokenized[0] != asked:
            texts = [self._ids(text) for text in candidates]
            if not texts or not all(texts):
                raise UserError("ranking needs at least one candidate, and no candidate may be empty.")
            self._tokenized = (asked, texts)
        return self._tokenized[1]

    def _sequence(self, lead_in: list[int], text: str, weight: float) -> TokenSequence:
        if not weight > 0:
            raise ValueError(f"target {text!r} has weight {weight}; weights must be positive.")
        target = self._ids(text)
        if not target:
            raise TargetError(text)
        sequence = join(lead_in, target, start=self.start_id, end=self.end_id, max_length=self.max_length)
        if sequence.target_cut:
            if not self.cut_targets:
                logger.warning(
                    "A target of %d tokens exceeds max_length %d and was cut: %r", len(target), self.max_length, text
                )
            self.cut_targets += 1
        self.cut_prompts += sequence.prompt_cut
        return sequence

    def _prompts(self, lead_ins: Sequence[str], room: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Left-padded ``[start] lead-in`` rows of at most ``room`` tokens, and their mask."""
        if room < 2:
            raise UserError(
                f"no room for a prompt: '{self.name}' reads {self.max_length} tokens (max_length), and the new text "
                f"may take {self.max_length - room} of them. Ask for fewer new tokens or shorter candidates."
            )
        ids, mask = pad_left([[self.start_id, *self._fitting(text, room - 1)] for text in lead_ins], self.pad_id)
        return ids.to(self.device), mask.to(self.device)

    def picture(self, source: ImageSource) -> Image.Image | Picture:
        """See :meth:`Backbone.picture`."""
        return super().picture(source) if self.features is None else Picture(source)

    def cache_features(self, folder: Path, *, precision: str, training: bool) -> None:
        """See :meth:`Backbone.cache_features`."""
        model = self.base_model
        self.features = FeatureCache(
            folder,
            model.get_submodule(self.parts["image"]),
            lambda pixels: encode_images(model, self.parts["image"], pixels),
            self._pixels,
            identity={"preprocessing": self.preprocessing(), "precision": precision},
            dtype=model.dtype,
            training=training,
        )

    def _images(self, images: Sequence[Image.Image | Picture]) -> dict[str, torch.Tensor]:
        """Fields of a batch that stand for images."""
        if self.features is None:
            return {"pixel_values": self._pixels(images)}
        return self.features.batch([image if isinstance(image, Picture) else Picture(image) for image in images])

    def _states(self, fields: Fields) -> torch.Tensor:
        """States (I, N, d) of the images of a batch, from the fields that stand for them."""
        if self.features is None:
            return encode_images(self.base_model, self.parts["image"], fields["pixel_values"])
        return self.features.states(fields)

    def _read_batch(self, fields: Mapping[str, torch.Tensor]) -> Attended:
        return self.attended(self.base_model, self._states(fields), fields)

    def _read(self, images: Sequence[Image.Image | Picture], prompts: Sequence[str]) -> tuple[Reading, list[str]]:
        """What the decoder attends to in each row, and its lead-ins; each image, and each question about it, once."""
        parted = [self.parted(prompt) for prompt in prompts]
        unique = {id(image): image for image in images}
        order = {key: index for index, key in enumerate(unique)}
        states = self._states(self._on_device(self._images(list(unique.values()))))  # (I, N, d)
        asked = [(order[id(image)], question) for image, (question, _) in zip(images, parted, strict=True)]
        distinct = {pair: index for index, pair in enumerate(dict.fromkeys(asked))}
        shown = [image for image, _ in distinct]
        if shown != list(range(len(states))):
            states = states[torch.tensor(shown, device=states.device)]
        fields = self._on_device(self.questions([question for _, question in distinct]))
        states, mask = self.attended(self.base_model, states, fields)  # (R, N', d)
        place = torch.tensor([distinct[pair] for pair in asked], device=self.device)
        reading = Reading(states, mask, place, read_images(self.decoder, states))
        return reading, [lead_in for _, lead_in in parted]

    def _on_device(self, fields: Fields) -> dict[str, torch.Tensor]:
        return {name: value.to(self.device) for name, value in fields.items()}


def encode_images(model: Any, part: str, pixel_values: torch.Tensor) -> torch.Tensor:
    """Run the image encoder; without a graph if nothing in it is trained, and nobody asks for gradients of the pixels.

    Args:
        model: possibly with adapters injected.
        part: dotted path of its image encoder.
        pixel_values: (I, 3, h, w).

    Returns:
        (I, N, d) normalised states of all image tokens, class token first.
    """
    encoder = model.get_submodule(part)
    wanted = pixel_values.requires_grad or any(parameter.requires_grad for parameter in encoder.parameters())
    with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
        states: torch.Tensor = encoder(pixel_values=pixel_values).last_hidden_state
        return states


def _paired(images: Sequence[Image.Image | Picture], prompts: Sequence[str]) -> bool:
    """Refuse lists of different length; return whether there is anything to do."""
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images but {len(prompts)} prompts; give one prompt per image.")
    return bool(prompts)
