"""BLIP in its captioning arrangement: an image tower and one text decoder that cross-attends to it.

Every task is "given image and prompt, continue". Text is ``[DEC] prompt target [SEP]``; prompt and target are
tokenised separately, so that the answer's tokens do not depend on the question's last word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipProcessor, GenerationConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from padapter.architectures.blip import use_attention
from padapter.backbones.base import LossReduction, Part, TrainingExample, evaluating, unwrapped
from padapter.backbones.blip_pictures import BlipPictures, check_processor
from padapter.backbones.features import FeatureCache
from padapter.backbones.image_memory import before_reading, of_rows, read_images
from padapter.backbones.losses import labelled, next_token_loss
from padapter.backbones.ranking import continuation_log_probs, first_choices, passes, plant
from padapter.backbones.sequences import TokenSequence, join, keep_right, pad_left, training_tensors
from padapter.data import ImageSource, Picture
from padapter.errors import UserError

logger = logging.getLogger(__name__)


class BlipTrainingModule(nn.Module):
    """Batch of :meth:`BlipBackbone.collate` -> loss and logits.

    Args:
        model: BLIP, or a PEFT wrapper around it.
        reduction: See :func:`padapter.backbones.losses.next_token_loss`.
        states: image entries of a batch -> image states (I, N, d); default: the image tower on ``pixel_values``.
    """

    # Tells transformers' Trainer that the loss is a mean of this batch, so that it divides by the number of
    # accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(
        self,
        model: nn.Module,
        reduction: LossReduction,
        states: Callable[[Mapping[str, torch.Tensor]], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.states = states or (lambda images: encode_images(unwrapped(model), images["pixel_values"]))
        self.reduction: LossReduction = reduction

    def forward(
        self,
        image_index: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
        **images: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return ``{"loss": (), "logits": (K, V)}``; shapes of the inputs as in :meth:`Backbone.collate`."""
        decoder = unwrapped(self.model).text_decoder
        states = self.states(images)  # (I, N, d)
        memory = None
        if len(image_index) > len(states) and not decoder.bert.encoder.gradient_checkpointing:
            # Answers to one question look at one picture: its keys and values are those of all of them. (Checkpointed
            # layers do without caches.)
            memory = before_reading(read_images(decoder, states), image_index)
        hidden = decoder.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=states[image_index],  # (S, N, d)
            past_key_values=memory,
            is_decoder=True,
            use_cache=False,
        ).last_hidden_state  # (S, L, d)
        logits = decoder.cls(hidden[labelled(labels)])  # (K, V): few tokens of a question and its answer have a label
        loss = next_token_loss(
            logits,
            labels,
            weights,
            num_images=states.shape[0],
            reduction=self.reduction,
            label_smoothing=decoder.label_smoothing,
        )
        return {"loss": loss, "logits": logits}


class BlipBackbone(BlipPictures):
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

    def __init__(self, model: nn.Module, processor: Any, name: str, max_length: int | None = None) -> None:
        text_config = unwrapped(model).config.text_config
        positions = int(text_config.max_position_embeddings)
        super().__init__(model, processor, name, positions if max_length is None else max_length)
        if not 2 <= self.max_length <= positions:
            raise UserError(f"max_length {max_length} must lie between 2 and {positions}, the positions of '{name}'.")
        self.start_id = int(text_config.bos_token_id)
        self.end_id = int(text_config.sep_token_id)
        self.pad_id = int(text_config.pad_token_id)
        self._tokenized: tuple[tuple[Any, int, tuple[str, ...]], list[list[int]]] | None = None
        check_processor(unwrapped(model).config, processor, name)

    @classmethod
    def load(cls, path: str | Path, *, name: str, dtype: torch.dtype, attention: str = "sdpa") -> BlipBackbone:
        """See :meth:`Backbone.load`."""
        try:
            model, report = BlipForConditionalGeneration.from_pretrained(path, dtype=dtype, output_loading_info=True)
            # The PIL version, also where torchvision is installed: its resize differs in the last digits, and the
            # same picture should give the same score on every machine.
            processor = BlipProcessor(
                image_processor=BlipImageProcessorPil.from_pretrained(path),
                tokenizer=AutoTokenizer.from_pretrained(path),
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"model '{name}' cannot be loaded: {error}") from error
        missing = sorted(report["missing_keys"])
        if missing:
            raise UserError(
                f"model '{name}' is not a BLIP captioning model (image tower and text decoder): {len(missing)} weights "
                f"are missing, e.g. {', '.join(missing[:3])}."
            )
        unread = sorted({key.split(".")[0] for key in report["unexpected_keys"]})
        if unread:
            logger.warning(
                "model '%s': %s is not read; of BLIP, image tower and text decoder are adapted.",
                name,
                ", ".join(unread),
            )
        model.name_or_path = name  # PEFT copies it into adapter_config.json
        model.config._name_or_path = name
        use_attention(model, attention)
        return cls(model, processor, name)

    def collate(self, examples: Sequence[TrainingExample]) -> dict[str, torch.Tensor]:
        """See :meth:`Backbone.collate`."""
        sequences: list[TokenSequence] = []
        owners: list[int] = []
        weights: list[float] = []
        for index, example in enumerate(examples):
            if not example.targets:
                raise ValueError(f"training example {index} (prompt {example.prompt!r}) has no target.")
            prompt = self._ids(example.prompt)
            for text, weight in example.targets:
                sequences.append(self._sequence(prompt, text, weight))
                owners.append(index)
                weights.append(weight)
        return {
            **self._images([example.image for example in examples]),
            "image_index": torch.tensor(owners, dtype=torch.long),
            **training_tensors(sequences, self.pad_id),
            "weights": torch.tensor(weights, dtype=torch.float32),
        }

    def training_module(self, loss_reduction: LossReduction) -> nn.Module:
        """See :meth:`Backbone.training_module`.

        Label smoothing is the decoder's own (``text_config.label_smoothing``). The image tower runs without a graph
        as long as none of its parameters (an adapter's included) is trained.
        """
        if loss_reduction not in ("sequence", "token"):
            raise ValueError(f"loss_reduction must be 'sequence' or 'token', not {loss_reduction!r}.")
        return BlipTrainingModule(self.model, loss_reduction, self.states)

    def generate(
        self,
        images: Sequence[Image.Image | Picture],
        prompts: Sequence[str],
        *,
        num_beams: int = 1,
        max_new_tokens: int = 20,
        min_new_tokens: int = 0,
        length_penalty: float = 1.0,
    ) -> list[str]:
        """See :meth:`Backbone.generate`."""
        if not _paired(images, prompts):
            return []
        with evaluating(self.model):
            decoder = self.base_model.text_decoder
            states, place = self._image_states(images)
            memory = read_images(decoder, states)
            ids, mask = self._prompts(prompts, room=self.max_length - max_new_tokens)
            config = GenerationConfig(
                do_sample=False,
                num_beams=num_beams,
                max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens,
                length_penalty=length_penalty,
                bos_token_id=self.start_id,
                eos_token_id=self.end_id,
                pad_token_id=self.pad_id,
            )
            # The decoder's own generate: BlipForConditionalGeneration.generate drops the last column of every
            # prompt and ignores left padding. Image states are not read again, but say that there is an image.
            output = decoder.generate(
                input_ids=ids,
                attention_mask=mask,
                encoder_hidden_states=states[place],
                past_key_values=before_reading(memory, place.repeat_interleave(num_beams)),
                generation_config=config,
            )
        texts = self.processor.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

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
            decoder = self.base_model.text_decoder
            states, place = self._image_states(images)
            memory = read_images(decoder, states)
            ids, mask = self._prompts(prompts, room=self.max_length - max(map(len, tokens)))
            states = states[place]  # (B, N, d)
            prefill = decoder(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(dim=1) - 1).clamp_min(0),
                encoder_hidden_states=states,
                past_key_values=before_reading(memory, place),
                use_cache=True,
                logits_to_keep=torch.tensor(
                    [-1], device=self.device
                ),  # 1 would be a view, whose strides cost exactness
            )
            first = prefill.logits[:, -1].float().log_softmax(dim=-1)[:, [text[0] for text in tokens]]  # (B, C)
            if k is None or k >= len(tokens):
                trees = [plant(tokens, range(len(tokens)), self.end_id)] * len(prompts)
            else:
                trees = [plant(tokens, first_choices(row, k).tolist(), self.end_id) for row in first]
            scores = torch.full_like(first, float("-inf"))
            for rows, batch in passes(trees):
                cache = of_rows(prefill.past_key_values, rows)
                rest = continuation_log_probs(decoder, cache, mask[rows], batch, states[rows], self.pad_id)
                for row, tree, found in zip(range(rows.start, rows.stop), batch, rest, strict=True):
                    scores[row, tree.candidates] = first[row, tree.candidates] + found
        if length_normalized:
            scores = scores / torch.tensor([len(text) + 1 for text in tokens], device=scores.device)
        return scores.tolist()

    def _ids(self, text: str) -> list[int]:
        """Token ids of plain text; a literal ``[SEP]`` in it is text, not a control token."""
        encoded = self.processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded.input_ids)

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

    def _sequence(self, prompt: list[int], text: str, weight: float) -> TokenSequence:
        if not weight > 0:
            raise ValueError(f"target {text!r} has weight {weight}; weights must be positive.")
        target = self._ids(text)
        if not target:
            raise ValueError(f"target {text!r} has no token; drop it or give the answer a text.")
        sequence = join(prompt, target, start=self.start_id, end=self.end_id, max_length=self.max_length)
        if sequence.target_cut:
            if not self.cut_targets:
                logger.warning(
                    "A target of %d tokens exceeds max_length %d and was cut: %r", len(target), self.max_length, text
                )
            self.cut_targets += 1
        self.cut_prompts += sequence.prompt_cut
        return sequence

    def _prompts(self, prompts: Sequence[str], room: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Left-padded ``[DEC] prompt`` rows of at most ``room`` tokens, and their mask."""
        if room < 2:
            raise UserError(
                f"no room for a prompt: '{self.name}' reads {self.max_length} tokens (max_length), and the new text "
                f"may take {self.max_length - room} of them. Ask for fewer new tokens or shorter candidates."
            )
        rows = []
        for prompt in prompts:
            tokens = self._ids(prompt)
            kept = keep_right(tokens, room - 1)
            self.cut_prompts += len(kept) < len(tokens)
            rows.append([self.start_id, *kept])
        ids, mask = pad_left(rows, self.pad_id)
        return ids.to(self.device), mask.to(self.device)

    def picture(self, source: ImageSource) -> Image.Image | Picture:
        """See :meth:`Backbone.picture`."""
        return super().picture(source) if self.features is None else Picture(source)

    def cache_features(self, folder: Path, *, precision: str, training: bool) -> None:
        """See :meth:`Backbone.cache_features`."""
        blip = self.base_model
        self.features = FeatureCache(
            folder,
            blip.vision_model,
            lambda pixels: encode_images(blip, pixels),
            self._pixels,
            identity={"preprocessing": self.preprocessing(), "precision": precision},
            dtype=blip.dtype,
            training=training,
        )

    def _images(self, images: Sequence[Image.Image | Picture]) -> dict[str, torch.Tensor]:
        """What :meth:`states` makes image states of."""
        if self.features is None:
            return {"pixel_values": self._pixels(images)}
        return self.features.batch([image if isinstance(image, Picture) else Picture(image) for image in images])

    def states(self, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """States (I, N, d) of the images of a batch.

        Args:
            images: the entries of :meth:`collate` that stand for the images.
        """
        if self.features is None:
            return encode_images(self.base_model, images["pixel_values"])
        return self.features.states(images)

    def _image_states(self, images: Sequence[Image.Image | Picture]) -> tuple[torch.Tensor, torch.Tensor]:
        """States (I, N, d) of images, an object that appears several times encoded once; (B,) which one a row shows."""
        unique = {id(image): image for image in images}
        place = {key: index for index, key in enumerate(unique)}
        batch = {name: value.to(self.device) for name, value in self._images(list(unique.values())).items()}
        return self.states(batch), torch.tensor([place[id(image)] for image in images], device=self.device)


def encode_images(blip: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """Run the image tower; without a graph if nothing in it is trained, and nobody asks for gradients of the pixels.

    Args:
        blip: ``BlipForConditionalGeneration``, possibly with adapters injected.
        pixel_values: (I, 3, h, w).

    Returns:
        (I, N, d) normalised states of all image tokens, class token first.
    """
    wanted = pixel_values.requires_grad or any(parameter.requires_grad for parameter in blip.vision_model.parameters())
    with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
        return blip.vision_model(pixel_values=pixel_values).last_hidden_state


def _paired(images: Sequence[Image.Image | Picture], prompts: Sequence[str]) -> bool:
    """Refuse lists of different length; return whether there is anything to do."""
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images but {len(prompts)} prompts; give one prompt per image.")
    return bool(prompts)
