"""One text read behind a picture and a prompt, with all attention recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from padapter.architectures import AttentionRecord, record_attention, weight_gradients
from padapter.backbones import Backbone, TrainingExample
from padapter.backbones.base import evaluating
from padapter.errors import UserError
from padapter.explain.families import Family, family_of
from padapter.explain.rules import Array, Relevance, gradient_weighted
from padapter.explain.streams import QUESTION, TEXT, connected
from padapter.explain.views import View, measure_views


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a picture are.

    Attributes:
        family: how the text reads them.
        views: the rectangles that the model sees.
        places: (patches,), see :class:`padapter.explain.families.Family`.
        columns: positions of the picture's tokens in the text; empty where they do not stand in it.
    """

    family: Family
    views: list[View]
    places: Any
    columns: Any


@dataclass(frozen=True)
class Reading:
    """What was recorded while a model read one text.

    Attributes:
        layout: where the tokens of the picture are.
        ids: (L,), all tokens of the text.
        first: position of the first token of the answer.
        log_probs: (K,), of the answer's tokens, its end token included; they have a graph.
        records: one per attention module, in the order of computation.
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
        "image 0", "image 1", ... per view, class token included.
        """
        steps = [step for record in self.records for step in record.steps]
        found = iter(weight_gradients(factor * self.log_probs[number], steps, retain_graph=True))
        gradients = [[next(found) for _ in record.steps] for record in self.records]
        return follow(self, gradients)

    def row(self, number: int) -> int:
        """The position that predicts the answer's token ``number``, counted from 0."""
        return self.first - 1 + number


def read(backbone: Backbone, image: Image.Image, prompt: str, text: str, layout: Layout | None = None) -> Reading:
    """Let a model read a text behind a picture and a prompt.

    Args:
        backbone: the model; put into eval mode for the time being.
        image: RGB.
        prompt: as the task makes it.
        text: the answer whose tokens are to be explained.
        layout: of an earlier reading of the same picture with the same model.

    Raises:
        UserError: if the family is not known, or what the model does is not what is known of its family.
    """
    family = family_of(backbone.base_model.config)
    batch = backbone.collate([TrainingExample(image, prompt, ((text, 1.0),))])
    batch = {name: value.to(backbone.device) for name, value in batch.items()}
    # What is frozen would be computed without a graph.
    batch["pixel_values"] = batch["pixel_values"].to(_dtype(backbone)).requires_grad_()
    with _differentiable(backbone), record_attention(backbone.model, gradients=True) as records:
        logits = backbone.training_module("token")(**batch)["logits"]  # (K, V), where there are labels
    labels = batch["labels"][0]
    answer = (labels >= 0).nonzero().flatten()
    if answer[0] == 0:
        raise UserError(f"the prompt {prompt!r} left no token in front of the answer; use a shorter answer.")
    log_probs = logits.float().log_softmax(dim=-1).gather(1, labels[answer, None])[:, 0]
    ids = batch["input_ids"][0]
    found = layout or _layout(backbone, family, image, batch)
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
        UserError: if a layer attends to something that does not fit the family.
    """
    layout = reading.layout
    views = len(layout.views)
    relevance = Relevance(sizes_of(reading))
    for record, pairs in zip(reading.records, gradients, strict=True):
        attention, own = _contributions(record, pairs)
        part, (rows, columns) = record.site.part, attention.shape[1:]
        if part == "vision" and not record.site.cross and len(attention) == views:
            _check(record, columns, rows)
            for view in range(views):
                _check(record, rows, relevance.sizes[f"image {view}"])
                relevance.attend_self(f"image {view}", attention[view], own[view])
            continue
        queries, keys = connected(record.site, rows, columns, relevance.sizes, layout.family.together)
        _check(record, len(attention), 1)
        _check(record, rows, sum(relevance.sizes.get(stream, -1) for stream in queries))
        if record.site.cross:
            _check(record, columns, sum(relevance.sizes[stream] for stream in keys))
            relevance.attend_cross(queries, keys, attention[0], own[0])
        else:
            taken = of_tokens(attention[0], rows)
            _check(record, taken.shape[1], rows)
            relevance.attend_self(queries, taken, own[0])
    _splice(relevance, layout)
    return relevance


def of_tokens(attention: Array, tokens: int) -> Array:
    """Self-attention (..., keys) to the tokens themselves: what a prefix of virtual tokens takes goes no further."""
    return attention[..., -tokens:]


def side_of_squares(layout: Layout) -> int:
    """How many patches wide the square is that a token of the picture in the text stands for."""
    patches = sum(view.rows * view.columns for view in layout.views)
    tokens = len(layout.columns) or patches
    side = round((patches / tokens) ** 0.5)
    fits = side > 0 and all(view.rows % side == 0 and view.columns % side == 0 for view in layout.views)
    if not fits or tokens * side**2 != patches:
        raise UserError(
            f"the model sees {patches} patches and its text holds {tokens} tokens of the picture; which token stands "
            "for which patches cannot be told for this model."
        )
    return side


def squares(layout: Layout, values: Array) -> list[Array]:
    """Numbers per token of the picture in the text (..., tokens) as one grid (..., rows, columns) per view."""
    side, start, found = side_of_squares(layout), 0, []
    for view in (view.coarser(side) for view in layout.views):
        count = view.rows * view.columns
        found.append(values[..., start : start + count].reshape(*values.shape[:-1], view.rows, view.columns))
        start += count
    return found


def patches(layout: Layout, view: int, values: Array) -> Array:
    """Numbers per token of the image encoder (..., tokens) as a grid (..., rows, columns); without class tokens."""
    shape = layout.views[view].rows, layout.views[view].columns
    count = shape[0] * shape[1]
    grid = np.empty((*values.shape[:-1], count))
    grid[..., layout.places] = values[..., values.shape[-1] - count :]
    return grid.reshape(*values.shape[:-1], *shape)


def _splice(relevance: Relevance, layout: Layout) -> None:
    """Connect the text with the tokens of the picture that stand in it."""
    if layout.family.reads == "queries":
        relevance.splice("text", "queries", layout.columns, np.eye(relevance.sizes["queries"]))
    if layout.family.reads != "inside":
        return
    start = 0
    for number in range(len(layout.views)):
        mixing = mixing_of(layout, number, relevance.sizes[f"image {number}"])
        relevance.splice("text", f"image {number}", layout.columns[start : start + len(mixing)], mixing)
        start += len(mixing)


def mixing_of(layout: Layout, number: int, tokens: int) -> Array:
    """Which tokens of the image encoder each token of the picture in the text is made of.

    Args:
        layout: where the tokens of the picture are.
        number: of the view.
        tokens: of the image encoder, a class token in front included.

    Returns:
        (tokens of the view in the text, tokens), shares; rows sum to 1.
    """
    view, side = layout.views[number], side_of_squares(layout)
    rows, columns = np.divmod(layout.places, view.columns)
    square = rows // side * (view.columns // side) + columns // side  # which square each patch lies in
    mixing = np.zeros((view.rows * view.columns // side**2, tokens))
    mixing[square, np.arange(tokens - len(square), tokens)] = 1 / side**2
    return mixing


def _contributions(record: AttentionRecord, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[Array, Array]:
    """Abar (B, N1, N2) and the same of own shares (B, N1), of all steps that a module adds up."""
    weights, own = [], []
    for step, (of_weights, of_own) in zip(record.steps, pairs, strict=True):
        weights.append(gradient_weighted(as_array(step.weights), as_array(of_weights)))
        own.append(gradient_weighted(as_array(step.own)[..., None], as_array(of_own)[..., None])[..., 0])
    return np.sum(weights, axis=0), np.sum(own, axis=0)


def sizes_of(reading: Reading) -> dict[str, int]:
    """Numbers of tokens of the streams of :meth:`Reading.relevance`."""
    sizes = {TEXT: len(reading.ids)}
    if reading.question:
        sizes[QUESTION] = len(reading.question)
    for record in reading.records:
        tokens = record.plain.weights.shape[2]
        if record.site.part == "vision":
            sizes |= {f"image {view}": tokens for view in range(len(reading.layout.views))}
        elif record.site.part == "connector":
            sizes["queries"] = tokens
    return sizes


def _layout(backbone: Backbone, family: Family, image: Image.Image, batch: dict[str, torch.Tensor]) -> Layout:
    config: Any = backbone.base_model.config

    def pixels_of(picture: Image.Image) -> Array:
        inputs = backbone.collate([TrainingExample(picture, "", (("yes", 1.0),))])
        return np.asarray(family.tiles(as_array(inputs["pixel_values"]), inputs, config), dtype=np.float64)

    views = measure_views(pixels_of, image.size, int(config.vision_config.patch_size))
    columns = np.zeros(0, dtype=np.int64)
    if family.reads != "cross":
        token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
        columns = np.flatnonzero(batch["input_ids"][0].cpu().numpy() == token)
    places = family.places(views[0].rows, views[0].columns, config)
    return Layout(family, views, places, columns)


def _once(records: list[AttentionRecord]) -> list[AttentionRecord]:
    names = [record.site.name for record in records]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f"attention module {twice!r} is called several times for one picture; relevance cannot be followed through "
            "windows or packed pictures."
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
