"""One text read behind a picture and a prompt, with all attention recorded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from padapter.architectures import AttentionRecord, record_attention, weight_gradients
from padapter.backbones import Backbone, TrainingExample
from padapter.backbones.base import evaluating
from padapter.errors import UserError
from padapter.explain.layout import Layout, measure_layout
from padapter.explain.picture import attend_picture, attend_to_picture, splice_picture
from padapter.explain.questions import ASKING, QUESTION, TEXT, side_by_side
from padapter.explain.rules import Array, Relevance, gradient_weighted


@dataclass(frozen=True)
class Reading:
    """What was recorded while a model read one text.

    Attributes:
        layout: where the tokens of the picture are.
        ids: (L,), all tokens of the text.
        first: position of the first token of the answer.
        log_probs: (K,), of the answer's tokens, its end token included; they have a graph.
        records: one per attention module and call of it, in the order of computation; several calls only of modules of
            the image encoder, which may see windows.
        question: tokens of what an encoder of questions read; empty where there is none.
    """

    layout: Layout
    ids: list[int]
    first: int
    log_probs: torch.Tensor
    records: list[AttentionRecord]
    question: tuple[int, ...] = ()

    def relevance(self, number: int, factor: float = 1.0) -> Relevance:
        """Relevance for ``factor`` times the log-probability of the answer's token ``number``, counted from 0.

        Streams are "text", "queries" where there is a Q-Former, "question" where an encoder of its own reads it, and
        "image 0", "image 1", ... (`Layout.images`).
        """
        steps = [step for record in self.records for step in record.steps]
        found = iter(weight_gradients(factor * self.log_probs[number], steps, retain_graph=True))
        gradients = [[next(found) for _ in record.steps] for record in self.records]
        return follow(self, gradients)

    def row(self, number: int) -> int:
        """The position in the text that predicts the answer's token ``number``, counted from 0."""
        return self.layout.ahead + self.first - 1 + number


def read(backbone: Backbone, image: Image.Image, prompt: str, text: str, layout: Layout | None = None) -> Reading:
    """Let a model read a text behind a picture and a prompt.

    Args:
        backbone: the model; put into eval mode for the time being.
        image: RGB.
        prompt: as the task makes it.
        text: the answer whose tokens are to be explained.
        layout: of an earlier reading of the same picture with the same model.

    Raises:
        UserError: if where the tokens of the picture are cannot be told, see `padapter.explain.layout`.
    """
    batch = backbone.collate([TrainingExample(image, prompt, ((text, 1.0),))])
    batch = {name: value.to(backbone.device) for name, value in batch.items()}
    if "pixel_values" in batch:  # what is frozen would be computed without a graph
        batch["pixel_values"] = batch["pixel_values"].to(_dtype(backbone)).requires_grad_()
    with _differentiable(backbone):
        found = layout or measure_layout(backbone, image, batch)
    with _differentiable(backbone), record_attention(backbone.model, gradients=True) as records:
        logits = backbone.training_module("token")(**batch)["logits"]  # (K, V), where there are labels
    labels = batch["labels"][0]
    answer = (labels >= 0).nonzero().flatten()
    if answer[0] == 0:
        raise UserError(f"the prompt {prompt!r} left no token in front of the answer; use a shorter answer.")
    log_probs = logits.float().log_softmax(dim=-1).gather(1, labels[answer, None])[:, 0]
    ids = batch["input_ids"][0]
    question = tuple(backbone.question_ids(batch))
    return Reading(found, ids.tolist(), int(answer[0]), log_probs, _once(records), question)


def follow(reading: Reading, gradients: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]]) -> Relevance:
    """Apply the rules of `padapter.explain.rules` to the layers of a model in the order of computation.

    Args:
        reading: what was recorded.
        gradients: per record and step of it, of weights and own shares.

    Returns:
        R of the text to everything.

    Raises:
        UserError: if a layer attends to something that does not fit the layout.
    """
    layout = reading.layout
    asked = {QUESTION: len(reading.question)} if reading.question else {}
    relevance = Relevance({TEXT: layout.ahead + len(reading.ids), **layout.sizes, **asked})
    found = [_contributions(record, pairs) for record, pairs in zip(reading.records, gradients, strict=True)]
    for _, calls in itertools.groupby(zip(reading.records, found, strict=True), lambda call: call[0].site.name):
        (record, (attention, own)), *others = calls
        part, name, (rows, keys) = record.site.part, record.site.name, attention.shape[1:]
        if part == "vision":
            attend_picture(relevance, layout, name, [(attention, own), *(found for _, found in others)])
            continue
        stream = ASKING[part]
        if stream == QUESTION and not asked:
            raise UserError(f"attention module {name!r} reads a text apart; relevance cannot be followed through it.")
        _check(record, len(attention), 1)
        both = side_by_side(layout, name, keys, len(reading.question))
        if both is not None and not record.site.cross:
            streams, order = both
            relevance.attend_self(streams, attention[0][np.ix_(order, order)], own[0][order])
            continue
        asking = layout.rows.get(name, np.arange(relevance.sizes[stream]))
        _check(record, rows, len(asking))
        if both is not None:
            streams, order = both
            relevance.attend_cross(stream, streams, attention[0][:, order], own[0])
        elif record.site.cross:
            attend_to_picture(relevance, layout, name, (stream, asking), attention[0], own[0])
        else:
            taken = of_tokens(attention[0], rows)
            _check(record, taken.shape[1], rows)
            _check(record, rows, relevance.sizes[stream])
            relevance.attend_self(stream, taken, own[0])
    splice_picture(relevance, layout)
    return relevance


def of_tokens(attention: Array, tokens: int) -> Array:
    """Self-attention (..., keys) to the tokens themselves: what a prefix of virtual tokens takes goes no further."""
    return attention[..., -tokens:]


def _contributions(record: AttentionRecord, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[Array, Array]:
    """Abar (B, N1, N2) and the same of own shares (B, N1), of all steps that a module adds up."""
    weights, own = [], []
    for step, (of_weights, of_own) in zip(record.steps, pairs, strict=True):
        weights.append(gradient_weighted(as_array(step.weights), as_array(of_weights)))
        own.append(gradient_weighted(as_array(step.own)[..., None], as_array(of_own)[..., None])[..., 0])
    return np.sum(weights, axis=0), np.sum(own, axis=0)


def _once(records: list[AttentionRecord]) -> list[AttentionRecord]:
    """The records, if only modules of the image encoder have several: of these `Layout` says what each call sees."""
    names = [record.site.name for record in records if record.site.part != "vision"]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f"attention module {twice!r} is called several times for one text; relevance cannot be followed through it."
        )
    return records


def _check(record: AttentionRecord, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(
            f"attention module {record.site.name!r} works on {found} tokens or rows where {expected} were expected; "
            "relevance cannot be followed through this model."
        )


def as_array(tensor: torch.Tensor) -> Array:
    """A tensor as an array, without its graph."""
    return tensor.detach().double().cpu().numpy()


def _dtype(backbone: Backbone) -> torch.dtype:
    return next(p.dtype for p in backbone.base_model.parameters() if p.is_floating_point())


@contextmanager
def _differentiable(backbone: Backbone) -> Iterator[None]:
    with evaluating(backbone.model), torch.enable_grad():
        yield
