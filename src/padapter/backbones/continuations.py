"""Log-likelihood of answers behind a prompt, for any model with a processor: picture and prompt are read once.

What the model remembers of a prompt, its decoder's cache and an encoder's states, is copied for every pass of answers.
Whether a model can go on from there is tried with the shortest and the longest of the first answers, which are also
scored in a pass of their own: of dozens of families, each with its own rules for positions and masks, some cannot, and
a wrong score would look like a right one.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers.modeling_outputs import BaseModelOutput

from padapter.backbones.sequences import pad_right

if TYPE_CHECKING:
    from padapter.backbones.processed import Encoded, ProcessedBackbone

logger = logging.getLogger(__name__)

CHUNK = 16
"""Answers scored in one forward pass."""


class Prompt(NamedTuple):
    """A prompt that has been read; P tokens of the text that answers continue.

    Attributes:
        fields: what the processor made of it, one row.
        last: (V,) log-probabilities of the token behind it.
        memory: the decoder's cache.
        mask: (1, P) attention mask of what it remembers.
        writer: the model that reads what follows.
        states: (1, N, d) of the encoder, if there is one.
        seen: (1, N), where they may be attended to; None: everywhere.
    """

    fields: Encoded
    last: torch.Tensor
    memory: Any
    mask: torch.Tensor
    writer: Any
    states: torch.Tensor | None
    seen: torch.Tensor | None


def writer_of(model: Any, output: Any) -> tuple[Any, Any]:
    """The model that writes, and its output: BLIP-2 only feeds a whole language model."""
    if "language_model_outputs" in output:
        return model.language_model, output.language_model_outputs
    return model, output


def of_text(logits: torch.Tensor, length: int) -> torch.Tensor:
    """Logits (B, length, V) of the text's own tokens: in front of them GIT has those of its picture."""
    return logits[:, -length:]


def encoded(states: torch.Tensor, mask: torch.Tensor | None) -> dict[str, Any]:
    """Arguments of an encoder-decoder that stand for what its encoder has read.

    Args:
        states: (B, N, d).
        mask: (B, N), or None where they may be attended to everywhere.
    """
    arguments: dict[str, Any] = {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}
    return arguments if mask is None else {**arguments, "attention_mask": mask}


class Continuations:
    """Scores answers for one backbone.

    Args:
        backbone: the model with its processor.

    Attributes:
        remembers: whether answers are read behind a remembered prompt; None until one has been.
    """

    def __init__(self, backbone: ProcessedBackbone) -> None:
        self.backbone = backbone
        self.remembers: bool | None = None

    def read(self, row: Encoded) -> Prompt:
        """Read a prompt, and keep what the model remembers of it."""
        inputs, model = self.backbone.to_device(row), self.backbone.base_model
        output = model(**inputs, use_cache=True)
        last = output.logits[0, -1].float().log_softmax(-1)
        writer, output = writer_of(model, output)
        states = getattr(output, "encoder_last_hidden_state", None)
        seen = None if states is None else inputs.get("attention_mask")
        memory, mask = getattr(output, "past_key_values", None), inputs[self.backbone.mask_field]
        return Prompt(row, last, memory, mask, writer, states, seen)

    def score(self, prompt: Prompt, answers: Sequence[list[int]], chosen: Sequence[int]) -> Iterator[tuple[int, float]]:
        """Yield the log-probability of every chosen answer and its end token; answers of like length share a pass.

        Args:
            prompt: what they follow.
            answers: token ids without the end token.
            chosen: indices of those to score.

        Yields:
            Index and log-probability.
        """
        order = sorted(chosen, key=lambda i: len(answers[i]))
        if self.remembers is None:
            # Several new tokens at once and padding behind them are where remembering goes wrong.
            tried = dict.fromkeys((order[0], order[-1]))
            self.remembers = self._tried(prompt, [[*answers[i], self.backbone.end_id] for i in tried])
        score = self._behind if self.remembers else self._whole
        for at in range(0, len(order), CHUNK):
            part = order[at : at + CHUNK]
            yield from zip(part, score(prompt, [[*answers[i], self.backbone.end_id] for i in part]), strict=True)

    def _tried(self, prompt: Prompt, answers: list[list[int]]) -> bool:
        expected = self._whole(prompt, answers)
        try:
            found = self._behind(prompt, answers)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
            found, why = [], f"{type(error).__name__}: {error}"
        else:
            scores = " and ".join(
                f"{one:.4f} behind what is remembered, {other:.4f} in a pass of its own"
                for one, other in zip(found, expected, strict=True)
            )
            why = f"answers score {scores}"
        # Other shapes are computed by other kernels, which round otherwise.
        exact = self.backbone.base_model.dtype == torch.float32
        absolute, relative = (1e-3, 1e-4) if exact else (0.05, 0.02)
        same = bool(found) and all(
            abs(one - other) <= absolute + relative * abs(other) for one, other in zip(found, expected, strict=True)
        )
        if not same:
            logger.warning("'%s' reads picture and prompt anew for every candidate (%s)", self.backbone.name, why)
        return same

    def _behind(self, prompt: Prompt, answers: Sequence[list[int]]) -> list[float]:
        """Read answers behind what the model remembers; their first token is already foreseen."""
        memory, device, number = copy.deepcopy(prompt.memory), self.backbone.device, len(answers)
        memory.batch_repeat_interleave(number)
        ids = pad_right([answer[:-1] for answer in answers], self.backbone.pad_id).to(device)
        mask = pad_right([[1] * (len(answer) - 1) for answer in answers], 0).to(device)
        inputs: dict[str, Any] = {self.backbone.tokens_field: ids}
        inputs[self.backbone.mask_field] = torch.cat([prompt.mask.expand(number, -1), mask.to(prompt.mask.dtype)], 1)
        if prompt.states is not None:
            seen = None if prompt.seen is None else prompt.seen.expand(number, -1)
            inputs |= encoded(prompt.states.expand(number, -1, -1), seen)
        for key in {"token_type_ids", "cross_attention_mask"} & prompt.fields.keys():
            entries = self.backbone.continued(prompt.fields, key, ids.shape[1]).to(device)
            inputs[key] = entries.expand(number, *entries.shape[1:])
        deltas = getattr(getattr(prompt.writer, "model", None), "rope_deltas", None)
        if deltas is not None:  # Qwen2-VL: a picture takes fewer positions than tokens
            at = torch.arange(ids.shape[1], device=device) + prompt.mask.shape[1] + deltas[:1]
            inputs["position_ids"] = at.expand(3, number, -1)
        output = prompt.writer(past_key_values=memory, use_cache=True, **inputs)
        log_probs = output.logits.float().log_softmax(-1)
        labels = pad_right([answer[1:] for answer in answers], 0).to(device)
        rest = log_probs.gather(2, labels.unsqueeze(2)).squeeze(2).masked_fill(mask == 0, 0.0).sum(1)
        first = prompt.last[[answer[0] for answer in answers]]
        return [float(score) for score in first + rest]

    def _whole(self, prompt: Prompt, answers: Sequence[list[int]]) -> list[float]:
        """Read picture, prompt and answer in one pass."""
        start = self.backbone.length(prompt.fields)
        rows = [self.backbone.followed(prompt.fields, answer) for answer in answers]
        inputs = self.backbone.to_device(self.backbone.together(rows, left=False))
        logits = self.backbone.base_model(**inputs, use_cache=False).logits
        log_probs = of_text(logits, inputs[self.backbone.tokens_field].shape[1]).float().log_softmax(-1)
        found = []
        for row, answer in enumerate(answers):
            steps = torch.arange(start - 1, start - 1 + len(answer), device=log_probs.device)
            found.append(float(log_probs[row, steps, torch.tensor(answer, device=log_probs.device)].sum()))
        return found
