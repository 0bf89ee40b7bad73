"""Models of transformers whose own processor makes of picture and prompt what they read.

The prompt is what the processor makes of picture and text: through its chat template if it has one, otherwise the text
behind the model's image token. The tokens of an answer and the end token continue the text that the model writes: the
prompt's own in decoder-only models, and another in encoder-decoders. An answer is tokenised alike whatever it follows.
"""

from __future__ import annotations

import itertools
import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from padapter.architectures import UNIONS, AttentionSite, find_sites
from padapter.backbones.base import Backbone, Part, TargetError, TrainingExample, evaluating, unwrapped
from padapter.backbones.continuations import Continuations
from padapter.backbones.ranking import first_choices
from padapter.backbones.weights import loading
from padapter.data import Picture, opened
from padapter.errors import UserError

logger = logging.getLogger(__name__)

#: Models whose pictures come as one list per text.
_NESTED = ("idefics2", "idefics3", "smolvlm", "mllama", "gemma3")
#: Models whose processor puts its image tokens in front of a text by itself.
_IMAGE_FIRST = ("blip-2", "instructblip", "florence2")

Encoded = dict[str, torch.Tensor]


class ProcessedBackbone(Backbone):
    """A model of ``AutoModelForImageTextToText`` with its processor.

    Args:
        model: The model.
        processor: What ``AutoProcessor`` gives.
        name: The model id or folder the user gave.
        max_length: Longest text; default: all positions of the decoder.

    Raises:
        UserError: If the processor has no end token.
    """

    #: Fields with one entry per token of the text that answers continue -> the entry of an answer's token, None for
    #: that of the prompt's last token; the first is that of the tokens, the second their mask.
    written: ClassVar[Mapping[str, int | None]]

    def __init__(self, model: nn.Module, processor: Any, name: str, max_length: int | None = None) -> None:
        config = unwrapped(model).config
        positions = int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2048)
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
    ) -> ProcessedBackbone:
        """See :meth:`Backbone.load`."""
        # Left alone, transformers takes SDPA for the families that support it.
        chosen = "eager" if attention == "eager" else None
        with loading(name):
            config = AutoConfig.from_pretrained(path)
            processor = cls.load_processor(path)
        cls.check(config, processor, name, asks)
        with loading(name):
            model, report = AutoModelForImageTextToText.from_pretrained(
                path, dtype=dtype, attn_implementation=chosen, output_loading_info=True
            )
        if report["missing_keys"]:
            some = ", ".join(sorted(report["missing_keys"])[:3])
            raise UserError(f"model '{name}' lacks {len(report['missing_keys'])} weights, e.g. {some}.")
        model.name_or_path = name  # PEFT copies it into adapter_config.json
        model.config._name_or_path = name
        return cls(model, processor, name)

    @classmethod
    def load_processor(cls, path: str | Path) -> Any:
        """The processor of a model, with an ``image_processor`` and a ``tokenizer``."""
        return AutoProcessor.from_pretrained(path)

    @classmethod
    def check(cls, config: Any, processor: Any, name: str, asks: bool | None) -> None:
        """Refuse a model that cannot do what it is wanted for, before its weights are read.

        Args:
            config: of the model.
            processor: of :meth:`load_processor`.
            name: what the user called the model.
            asks: see :func:`padapter.backbones.load_backbone`.

        Raises:
            UserError: saying why.
        """

    @abstractmethod
    def read(self, image: Image.Image | Picture, prompt: str) -> Encoded:
        """What the model reads of one picture and one prompt.

        Args:
            image: the picture.
            prompt: of a task.

        Returns:
            Arguments of the model, each with one row; those of ``written`` end where an answer begins.

        Raises:
            UserError: if there is no room for it.
        """

    @abstractmethod
    def batch(self, prompts: Sequence[Encoded], owners: Sequence[int], answers: Sequence[list[int]]) -> Encoded:
        """Inputs and labels of a training batch.

        Args:
            prompts: what :meth:`read` made of I pictures and their prompts.
            owners: S numbers, the prompt that each answer follows; in order.
            answers: S token ids with their end tokens.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels``, each (S, L), and whatever stands for the pictures.
        """

    @abstractmethod
    def search(self, rows: Sequence[Encoded], config: GenerationConfig) -> list[list[int]]:
        """New tokens behind each row of :meth:`read`."""

    def collate(self, examples: Sequence[TrainingExample]) -> dict[str, torch.Tensor]:
        """See :meth:`Backbone.collate`; what stands for pictures are the processor's own fields."""
        prompts: list[Encoded] = []
        answers: list[list[int]] = []
        owners: list[int] = []
        weights: list[float] = []
        for index, example in enumerate(examples):
            if not example.targets:
                raise ValueError(f"training example {index} (prompt {example.prompt!r}) has no target.")
            prompts.append(self.read(example.image, example.prompt))
            for text, weight in example.targets:
                if not weight > 0:
                    raise ValueError(f"target {text!r} has weight {weight}; weights must be positive.")
                answers.append(self._answer(text, room=self.max_length - self.length(prompts[-1])))
                owners.append(index)
                weights.append(weight)
        batch = self.batch(prompts, owners, answers)
        batch["image_index"] = torch.tensor(owners)
        batch["weights"] = torch.tensor(weights, dtype=torch.float32)
        return batch

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
        rows = [self.read(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
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
            new = self.search(rows, config)
        texts = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
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
        rows = [self.read(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
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

    @property
    def tokens_field(self) -> str:
        """The argument of the model with the tokens of the text that answers continue."""
        return next(iter(self.written))

    @property
    def mask_field(self) -> str:
        """The argument with the attention mask of that text."""
        return list(self.written)[1]

    def length(self, row: Encoded) -> int:
        """How many tokens an answer has in front of it in its text."""
        return row[self.tokens_field].shape[1]

    def entry(self, key: str) -> int:
        """The number that stands in a field of ``written`` for a token of an answer; where None does, 0 for padding."""
        return self.written[key] or 0

    def continued(self, prompt: Encoded, key: str, length: int) -> torch.Tensor:
        """What a field of ``written``, other than that of the tokens, holds for the tokens of an answer.

        Args:
            prompt: what the answer follows.
            key: of the field (1, P, ...).
            length: of the answer.

        Returns:
            (1, length, ...), on the prompt's device.
        """
        field, more = prompt[key], prompt[key].shape[2:]
        if self.written[key] is None:
            return field[:, -1:].expand(-1, length, *more)
        return field.new_full((1, length, *more), self.entry(key))

    def followed(self, prompt: Encoded, answer: Sequence[int]) -> Encoded:
        """The prompt with the answer's tokens behind it, in every field of ``written``."""
        found = dict(prompt)
        for key in self.written.keys() & prompt.keys():
            is_text = key == self.tokens_field
            more = torch.tensor([answer]) if is_text else self.continued(prompt, key, len(answer))
            found[key] = torch.cat([prompt[key], more.to(prompt[key].dtype)], dim=1)
        return found

    def together(self, rows: Sequence[Encoded], *, left: bool) -> Encoded:
        """Rows as one batch: fields per token padded on one side, all others on the right.

        Args:
            rows: with the same fields.
            left: whether fields of ``written`` are padded on the left.
        """
        batch = {}
        for key in rows[0]:
            values = [row[key] for row in rows]
            if key in self.written:
                fill = {self.tokens_field: self.pad_id, self.mask_field: 0}.get(key, self.entry(key))
                width = max(value.shape[1] for value in values)
                gaps = [width - value.shape[1] for value in values]
                inner = [0, 0] * (values[0].dim() - 2)  # nothing beside the dimension of the tokens
                values = [
                    nn.functional.pad(value, (*inner, *((gap, 0) if left else (0, gap))), value=fill)
                    for value, gap in zip(values, gaps, strict=True)
                ]
            batch[key] = torch.cat(_same_shape(values, self.pad_id if key == "input_ids" else 0))
        return batch

    def to_device(self, batch: Encoded) -> Encoded:
        """The batch where the model is, numbers in its precision."""
        dtype = next(p.dtype for p in self.base_model.parameters() if p.is_floating_point())
        return {
            key: value.to(self.device, dtype if value.is_floating_point() else value.dtype)
            for key, value in batch.items()
        }

    def _encode(self, image: Image.Image | Picture, prompt: str) -> Encoded:
        """What the processor makes of one picture and one text: fields with one row, not padded."""
        text = self._worded(prompt)
        images: Any = [[opened(image)]] if self.kind in _NESTED else [opened(image)]
        # A template may begin with the start token itself; otherwise the processor knows what its texts begin with.
        start = self.processor.tokenizer.bos_token
        how = {"add_special_tokens": False} if start and text.startswith(start) else {}
        fields = self.processor(images=images, text=[text], return_tensors="pt", **how)
        token = getattr(self.base_model.config, "image_token_id", None)
        if self.kind in _IMAGE_FIRST and (token is None or not (fields["input_ids"] == token).any()):
            raise UserError(
                f"the processor of model '{self.name}' puts no image token ({token}) in front of a prompt, so that "
                "pictures would not be seen. Its processor_config.json must say how many there are (num_query_tokens)."
            )
        # PaliGemma adds labels for the prompt; what is to be learnt is decided here.
        return {key: value for key, value in fields.items() if isinstance(value, torch.Tensor) and key != "labels"}

    def _worded(self, prompt: str) -> str:
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            messages = [{"role": "user", "content": content}]
            return str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        token = getattr(self.processor, "image_token", None)
        return prompt if token is None or self.kind in _IMAGE_FIRST else f"{token}{prompt}"

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
        longest = max(map(self.length, rows))
        if longest + new > self.max_length:
            raise UserError(
                f"no room: a prompt with its image tokens has {longest} tokens and {new} may follow, but "
                f"'{self.name}' reads {self.max_length} (max_length). Ask for fewer new tokens or shorter prompts."
            )


def _same_shape(values: Sequence[torch.Tensor], fill: int) -> list[torch.Tensor]:
    """Values padded to one shape behind the first dimension: tiles that a picture does not have, tokens of others."""
    shapes = torch.tensor([value.shape[1:] for value in values])
    largest = shapes.amax(dim=0).tolist() if shapes.numel() else []
    found = []
    for value in values:
        gaps = [gap for size, most in zip(value.shape[1:], largest, strict=True) for gap in (most - size, 0)]
        found.append(nn.functional.pad(value, tuple(reversed(gaps)), value=fill) if any(gaps) else value)
    return found


def _projections(sites: Sequence[AttentionSite | Any]) -> tuple[str, ...]:
    """Last names of the query and value projections of some attention modules."""
    paths = [path for site in sites if isinstance(site, AttentionSite) for path in (site.row.query, site.row.value)]
    return tuple(dict.fromkeys(name.rpartition(".")[2] for path in paths for name in path.split("|")))


def anatomy(model: nn.Module) -> tuple[dict[Part, str], dict[Part, tuple[str, ...]]]:
    """Where an image-text model has its parts, and what their query and value projections are called.

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
