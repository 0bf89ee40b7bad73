"""Any decoder-only vision-language model of transformers: its own processor makes the prompt, the answer follows.

The prompt is what the processor makes of picture and text: through its chat template if it has one, otherwise the text
behind the model's image token. The tokens of the answer and the end token are appended to it, so that an answer is
tokenised alike whatever it follows.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from padapter.architectures import UNIONS, AttentionSite, find_sites
from padapter.backbones.base import (
    Backbone,
    LossReduction,
    Part,
    TargetError,
    TrainingExample,
    evaluating,
    unwrapped,
)
from padapter.backbones.continuations import Continuations
from padapter.backbones.losses import labelled, next_token_loss
from padapter.backbones.ranking import first_choices
from padapter.backbones.sequences import IGNORE
from padapter.backbones.weights import loading
from padapter.data import Picture, opened
from padapter.errors import UserError

logger = logging.getLogger(__name__)

#: Fields with one entry per token, and the entry of an answer's token; `_ANSWER_TYPES` has exceptions. None: the ids
#: themselves, and of Mllama's mask (1, L, pictures, tiles) what the last token of the prompt sees.
_PER_TOKEN = {
    "input_ids": None,
    "attention_mask": 1,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "image_embeds_position_mask": 0,
    "cross_attention_mask": None,
}
#: PaliGemma reads tokens of type 0 in both directions; what it is to say is of type 1.
_ANSWER_TYPES = {"paligemma": 1}
#: Models whose pictures come as one list per text.
_NESTED = ("idefics2", "idefics3", "smolvlm", "mllama", "gemma3")

Encoded = dict[str, torch.Tensor]


class ImageTextTrainingModule(nn.Module):
    """Batch of :meth:`ImageTextBackbone.collate` -> loss and logits.

    Args:
        model: The model, or a PEFT wrapper around it.
        reduction: See :func:`padapter.backbones.losses.next_token_loss`.
    """

    accepts_loss_kwargs = False  # as in DecoderTraining

    def __init__(self, model: nn.Module, reduction: LossReduction) -> None:
        super().__init__()
        self.model = model
        self.reduction: LossReduction = reduction

    def forward(
        self, labels: torch.Tensor, weights: torch.Tensor, image_index: torch.Tensor, **inputs: Any
    ) -> dict[str, torch.Tensor]:
        """Return ``{"loss": (), "logits": (K, V)}``."""
        logits = of_text(self.model(**inputs, use_cache=False).logits, labels.shape[1])[labelled(labels)]
        pictures = int(image_index.max()) + 1
        loss = next_token_loss(logits, labels, weights, num_images=pictures, reduction=self.reduction)
        return {"loss": loss, "logits": logits}


class ImageTextBackbone(Backbone):
    """A model of ``AutoModelForImageTextToText`` with its processor.

    Args:
        model: The model; decoder-only.
        processor: What ``AutoProcessor`` gives.
        name: The model id or folder the user gave.
        max_length: Longest sequence, image tokens included; default: all positions of the decoder.

    Raises:
        UserError: If the model is an encoder-decoder, or its processor has no end token.
    """

    def __init__(self, model: nn.Module, processor: Any, name: str, max_length: int | None = None) -> None:
        config = unwrapped(model).config
        text = config.get_text_config()
        if getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
            raise UserError(
                f"model '{name}' is an encoder-decoder; the command line trains decoder-only models so far."
            )
        positions = int(getattr(text, "max_position_embeddings", 2048))
        super().__init__(model, processor, name, positions if max_length is None else min(max_length, positions))
        tokenizer = processor.tokenizer
        if tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer of model '{name}' has no end token (eos_token); an answer could not end.")
        self.end_id = int(tokenizer.eos_token_id)
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
        self.kind = str(config.model_type)
        self.parts, self.projections = anatomy(unwrapped(model))
        self.continuations = Continuations(self)

    @classmethod
    def build(cls, config: Any, *, asks: bool = True) -> nn.Module:
        """See :meth:`Backbone.build`."""
        model: nn.Module = AutoModelForImageTextToText.from_config(config)
        return model

    @classmethod
    def anatomy(cls, model: nn.Module) -> tuple[Mapping[Part, str], Mapping[Part, tuple[str, ...]]]:
        """See :meth:`Backbone.anatomy`; found out from the table of architectures."""
        return anatomy(model)

    @classmethod
    def load(
        cls, path: str | Path, *, name: str, dtype: torch.dtype, attention: str = "sdpa", asks: bool | None = None
    ) -> ImageTextBackbone:
        """See :meth:`Backbone.load`."""
        # Left alone, transformers takes SDPA for the families that support it.
        chosen = "eager" if attention == "eager" else None
        with loading(name):
            model, report = AutoModelForImageTextToText.from_pretrained(
                path, dtype=dtype, attn_implementation=chosen, output_loading_info=True
            )
            processor = AutoProcessor.from_pretrained(path)
        if report["missing_keys"]:
            some = ", ".join(sorted(report["missing_keys"])[:3])
            raise UserError(f"model '{name}' lacks {len(report['missing_keys'])} weights, e.g. {some}.")
        model.name_or_path = name  # PEFT copies it into adapter_config.json
        model.config._name_or_path = name
        return cls(model, processor, name)

    def collate(self, examples: Sequence[TrainingExample]) -> dict[str, torch.Tensor]:
        """See :meth:`Backbone.collate`; pictures are repeated for every target, in the processor's own fields."""
        rows: list[Encoded] = []
        labels: list[torch.Tensor] = []
        owners: list[int] = []
        weights: list[float] = []
        for index, example in enumerate(examples):
            if not example.targets:
                raise ValueError(f"training example {index} (prompt {example.prompt!r}) has no target.")
            prompt = self._encode(example.image, example.prompt)
            for text, weight in example.targets:
                if not weight > 0:
                    raise ValueError(f"target {text!r} has weight {weight}; weights must be positive.")
                answer = self._answer(text, room=self.max_length - prompt["input_ids"].shape[1])
                rows.append(self.followed(prompt, answer))
                labels.append(torch.tensor([*[IGNORE] * prompt["input_ids"].shape[1], *answer]))
                owners.append(index)
                weights.append(weight)
        batch = self.together(rows, left=False)
        width = batch["input_ids"].shape[1]
        batch["labels"] = torch.stack([nn.functional.pad(x, (0, width - len(x)), value=IGNORE) for x in labels])
        batch["image_index"] = torch.tensor(owners)
        batch["weights"] = torch.tensor(weights, dtype=torch.float32)
        return batch

    def training_module(self, loss_reduction: LossReduction) -> nn.Module:
        """See :meth:`Backbone.training_module`."""
        if loss_reduction not in ("sequence", "token"):
            raise ValueError(f"loss_reduction must be 'sequence' or 'token', not {loss_reduction!r}.")
        return ImageTextTrainingModule(self.model, loss_reduction)

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
        if not prompts:
            return []
        rows = [self._encode(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        self._check_room(rows, max_new_tokens)
        config = GenerationConfig(
            do_sample=False,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            length_penalty=1.0 if length_penalty is None else length_penalty,
            bos_token_id=self.processor.tokenizer.bos_token_id,
            eos_token_id=self.end_id,
            pad_token_id=self.pad_id,
        )
        with evaluating(self.model):
            inputs = self.to_device(self.together(rows, left=True))
            output = self.base_model.generate(**inputs, generation_config=config)
        ids = inputs["input_ids"]
        if output.shape[1] >= ids.shape[1] and torch.equal(output[:, : ids.shape[1]], ids):
            output = output[:, ids.shape[1] :]
        texts = self.processor.tokenizer.batch_decode(output, skip_special_tokens=True)
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
        """See :meth:`Backbone.rank`. Picture and prompt are read once, candidates behind them.

        Where a model cannot go on from what it remembers (tried with the first candidate), it reads all of it anew for
        every candidate, and says so.
        """
        if k is not None and k < 1:
            raise UserError(f"k must be at least 1, not {k}.")
        answers = [self._ids(text) for text in candidates]
        if not answers or not all(answers):
            raise UserError("ranking needs at least one candidate, and no candidate may be empty.")
        rows = [self._encode(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        self._check_room(rows, max(map(len, answers)) + 1)
        scores = []
        with evaluating(self.model):
            for row in rows:
                prompt = self.continuations.read(row)
                chosen = list(range(len(answers)))
                if k is not None and k < len(answers):
                    first = prompt.last[[answer[0] for answer in answers]]
                    chosen = first_choices(first, k).tolist()
                found = [float("-inf")] * len(answers)
                for i, score in self.continuations.score(prompt, answers, chosen):
                    found[i] = score / (len(answers[i]) + 1) if length_normalized else score
                scores.append(found)
        return scores

    def _encode(self, image: Image.Image | Picture, prompt: str) -> Encoded:
        """What the processor makes of one picture and one text: fields with one row, not padded."""
        text = self._worded(prompt)
        images: Any = [[opened(image)]] if self.kind in _NESTED else [opened(image)]
        fields = self.processor(images=images, text=[text], return_tensors="pt", add_special_tokens=True)
        # PaliGemma adds labels for the prompt; what is to be learnt is decided here.
        return {key: value for key, value in fields.items() if isinstance(value, torch.Tensor) and key != "labels"}

    def _worded(self, prompt: str) -> str:
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            messages = [{"role": "user", "content": content}]
            return str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        token = getattr(self.processor, "image_token", None)
        # The processors of BLIP-2 and InstructBLIP put their image tokens in front by themselves.
        return prompt if token is None or self.kind in ("blip-2", "instructblip") else f"{token}{prompt}"

    def _ids(self, text: str) -> list[int]:
        return list(self.processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    def _answer(self, text: str, room: int) -> list[int]:
        tokens = self._ids(text)
        if not tokens:
            raise TargetError(text)
        answer = [*tokens, self.end_id]
        if room < 1:
            raise UserError(f"a prompt with its image tokens fills all {self.max_length} tokens '{self.name}' reads.")
        if len(answer) > room:
            if not self.cut_targets:
                logger.warning("A target of %d tokens exceeds max_length %d: %r", len(tokens), self.max_length, text)
            self.cut_targets += 1
        return answer[:room]

    def _check_room(self, rows: Sequence[Encoded], new: int) -> None:
        longest = max(row["input_ids"].shape[1] for row in rows)
        if longest + new > self.max_length:
            raise UserError(
                f"no room: a prompt with its image tokens has {longest} tokens and {new} may follow, but "
                f"'{self.name}' reads {self.max_length} (max_length). Ask for fewer new tokens or shorter prompts."
            )

    def followed(self, prompt: Encoded, answer: Sequence[int]) -> Encoded:
        """The prompt with the answer's tokens behind it, in every field that has one entry per token."""
        found = dict(prompt)
        for key in _PER_TOKEN.keys() & prompt.keys():
            if key == "input_ids":
                more = torch.tensor([answer])
            elif _PER_TOKEN[key] is None:
                more = prompt[key][:, -1:].expand(-1, len(answer), *prompt[key].shape[2:])
            else:
                more = torch.full((1, len(answer)), self.entry(key))
            found[key] = torch.cat([prompt[key], more.to(prompt[key].dtype)], dim=1)
        return found

    def entry(self, key: str) -> int:
        """What a field with one entry per token holds for a token of an answer."""
        default = _PER_TOKEN[key]
        return _ANSWER_TYPES.get(self.kind, 0) if key == "token_type_ids" else int(default or 0)

    def together(self, rows: Sequence[Encoded], *, left: bool) -> Encoded:
        """Rows as one batch: fields per token padded on one side, pictures behind each other."""

        def inner(value: torch.Tensor) -> list[int]:
            return [0, 0] * (value.dim() - 2)  # nothing beside the dimension of the tokens

        width = max(row["input_ids"].shape[1] for row in rows)
        batch = {}
        for key in rows[0]:
            values = [row[key] for row in rows]
            if key in _PER_TOKEN:
                fill = {"input_ids": self.pad_id, "attention_mask": 0}.get(key, self.entry(key))
                gaps = [width - value.shape[1] for value in values]
                values = [
                    nn.functional.pad(value, (*inner(value), *((gap, 0) if left else (0, gap))), value=fill)
                    for value, gap in zip(values, gaps, strict=True)
                ]
            batch[key] = torch.cat(_same_shape(values))
        return batch

    def to_device(self, batch: Encoded) -> Encoded:
        """The batch where the model is, numbers in its precision."""
        dtype = next(p.dtype for p in self.base_model.parameters() if p.is_floating_point())
        return {
            key: value.to(self.device, dtype if value.is_floating_point() else value.dtype)
            for key, value in batch.items()
        }


def of_text(logits: torch.Tensor, length: int) -> torch.Tensor:
    """Logits (B, length, V) of the text's own tokens: in front of them GIT has those of its picture."""
    return logits[:, -length:]


def _same_shape(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Values padded with zeros to one shape behind the first dimension: tiles that a picture does not have."""
    shapes = torch.tensor([value.shape[1:] for value in values])
    largest = shapes.amax(dim=0).tolist() if shapes.numel() else []
    found = []
    for value in values:
        gaps = [gap for size, most in zip(value.shape[1:], largest, strict=True) for gap in (most - size, 0)]
        found.append(nn.functional.pad(value, tuple(reversed(gaps))) if any(gaps) else value)
    return found


def _projections(sites: Sequence[AttentionSite | Any]) -> tuple[str, ...]:
    """Last names of the query and value projections of some attention modules."""
    paths = [path for site in sites if isinstance(site, AttentionSite) for path in (site.row.query, site.row.value)]
    return tuple(dict.fromkeys(name.rpartition(".")[2] for path in paths for name in path.split("|")))


def anatomy(model: nn.Module) -> tuple[dict[Part, str], dict[Part, tuple[str, ...]]]:
    """Where a decoder-only image-text model has its parts, and what their query and value projections are called.

    Args:
        model: The model without a PEFT wrapper.

    Returns:
        ``parts`` and ``projections`` as of :class:`Backbone`.
    """
    sites = find_sites(model).values()
    kinds: tuple[tuple[Part, str], ...] = (("text", "language"), ("image", "vision"))
    inside = {part: [site for site in sites if site.part in UNIONS.get(kind, (kind,))] for part, kind in kinds}
    roots = {part: _common([site.name for site in group]) for part, group in inside.items()}
    return roots, {part: _projections(group) for part, group in inside.items()}


def _common(names: Sequence[str]) -> str:
    """The longest dotted path that all names begin with."""
    columns = zip(*(name.split(".") for name in names), strict=False)
    return ".".join(parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, columns))
