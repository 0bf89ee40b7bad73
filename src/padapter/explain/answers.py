"""Explain a text with a model at hand."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from padapter.architectures import AttentionRecord
from padapter.backbones import Backbone
from padapter.errors import UserError
from padapter.explain.explanation import AttentionMap, Explanation, Side
from padapter.explain.reading import Reading, as_array, of_tokens, patches, read, side_of_squares, sizes_of, squares
from padapter.explain.rules import Array
from padapter.explain.streams import PICTURE, QUESTION, TEXT, connected, place_of
from padapter.explain.views import View
from padapter.functional import Step


@dataclass(frozen=True)
class _Term:
    """A token of a text that was read, and how much its log-probability counts."""

    reading: Reading
    number: int
    factor: float


def explain_answer(
    backbone: Backbone,
    picture: Image.Image,
    prompt: str,
    text: str,
    *,
    others: Sequence[str] = (),
    token: int | str | None = None,
    layers: Collection[int] | None = None,
    title: str = "model",
    answer: str | None = None,
) -> Explanation:
    """Explain why a model says a text about a picture.

    The target is the sum of the log-probabilities of the text's tokens, each explained by its own gradient at the
    position that predicts it. With ``others`` it is what a choice is about, ``log p(text) - log sum p(other)``: the
    gradient of the second part, over the tokens of the others, makes the last of the side's maps.

    Args:
        backbone: the model, adapted or not.
        picture: RGB.
        prompt: as the task makes it.
        text: the text to explain.
        others: texts that it is to be told from.
        token: explain this token of the text alone: its number, from 1, or what it says. None: all of them.
        layers: layers whose attention is kept; None for all. Relevance always counts all layers.
        title: stands above the side.
        answer: what the model itself answers; told on, no more.

    Returns:
        An explanation with one side.

    Raises:
        UserError: if the family is not known (`padapter.explain.families`), or the token is not in the text.
    """
    reading = read(backbone, picture, prompt, text)
    names = _names(backbone, reading)
    chosen = _chosen(names, token, text)
    groups: list[tuple[str, float, list[_Term]]] = [
        (names[number], float(reading.log_probs.detach()[number]), [_Term(reading, number, 1.0)]) for number in chosen
    ]
    if others:
        groups.append(_against(backbone, picture, prompt, text, others, reading))
    kept = [index for index, place in enumerate(reading.ids[: reading.first]) if place not in _placeholders(reading)]
    maps, words = zip(*(_maps(terms, kept) for _, _, terms in groups), strict=True)
    side = Side(
        title=title,
        answer=answer,
        tokens=tuple(name for name, _, _ in groups),
        log_probs=np.array([value for _, value, _ in groups]),
        relevance=tuple(np.stack(grids) for grids in zip(*maps, strict=True)),
        words=tuple(_decoded(backbone, [*reading.question, *(reading.ids[index] for index in kept)])),
        word_relevance=np.stack(words),
        attention=tuple(_attention(reading, [reading.row(number) for number in chosen], layers)),
    )
    return Explanation(picture, prompt, text, tuple(reading.layout.views), (side,))


def _names(backbone: Backbone, reading: Reading) -> list[str]:
    """The answer's tokens as text, without the end token."""
    ids = reading.ids[reading.first : reading.first + len(reading.log_probs)]
    special = set(backbone.processor.tokenizer.all_special_ids)
    while len(ids) > 1 and ids[-1] in special:
        ids = ids[:-1]
    return _decoded(backbone, ids)


def _decoded(backbone: Backbone, ids: Sequence[int]) -> list[str]:
    tokenizer = backbone.processor.tokenizer
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    return [tokenizer.decode([number]).strip() or piece for number, piece in zip(ids, pieces, strict=True)]


def _chosen(names: Sequence[str], token: int | str | None, text: str) -> list[int]:
    if token is None:
        return list(range(len(names)))
    wanted = str(token).strip()
    found = [index for index, name in enumerate(names) if name.removeprefix("##") == wanted.removeprefix("##")]
    if not found and wanted.isdecimal() and 1 <= int(wanted) <= len(names):
        found = [int(wanted) - 1]
    if not found:
        listed = ", ".join(f"{index} {name!r}" for index, name in enumerate(names, 1))
        raise UserError(f"--token: {token!r} is no token of {text!r}; give the number or the text of one of: {listed}")
    return found


def _against(
    backbone: Backbone, picture: Image.Image, prompt: str, text: str, others: Sequence[str], reading: Reading
) -> tuple[str, float, list[_Term]]:
    """The part of the log odds that belongs to the other texts: each by its share in their probability."""
    rivals = [other for other in dict.fromkeys(others) if other != text]
    if not rivals:
        raise UserError(f"there is nothing to tell {text!r} from; name other answers.")
    readings = [read(backbone, picture, prompt, other, reading.layout) for other in rivals]
    given = reading.ids[: reading.first]
    if any(rival.ids[: rival.first] != given for rival in readings):
        raise UserError(f"the prompt {prompt!r} is cut to make room for some answers; shorten it to compare them.")
    scores = np.array([float(reading.log_probs.detach().sum()) for reading in readings])
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    terms = [
        _Term(reading, number, -float(share))
        for reading, share in zip(readings, shares, strict=True)
        for number in range(len(reading.log_probs))
    ]
    return "not " + ", ".join(rivals), -float(scores.max() + np.log(np.exp(scores - scores.max()).sum())), terms


def _placeholders(reading: Reading) -> set[int]:
    return {reading.ids[column] for column in reading.layout.columns}


def _maps(terms: Sequence[_Term], kept: list[int]) -> tuple[list[Array], Array]:
    """Relevance of patches, (rows, columns) per view, and of the words of the prompt, summed over terms."""
    grids: list[Array] | None = None
    words = np.zeros(len(terms[0].reading.question) + len(kept))
    for term in terms:
        layout, row = term.reading.layout, term.reading.row(term.number)
        relevance = term.reading.relevance(term.number, term.factor)
        found = [patches(layout, view, relevance.of("text", f"image {view}")[row]) for view in range(len(layout.views))]
        grids = found if grids is None else [one + other for one, other in zip(grids, found, strict=True)]
        taken = relevance.of("text", "text")[row] - np.eye(relevance.sizes["text"])[row]
        asked = relevance.of(TEXT, QUESTION)[row] if QUESTION in relevance.sizes else ()
        words += [*asked, *taken[kept]]
    if grids is None:
        raise ValueError("there is nothing to explain.")
    return grids, words


def _attention(reading: Reading, rows: list[int], layers: Collection[int] | None) -> list[AttentionMap]:
    found = []
    for record in reading.records:
        if layers is not None and record.layer not in layers:
            continue
        message = record.messages[0].step if len(record.messages) == 1 else None
        plain = _on_views(reading, record, record.plain, rows)
        if plain is None:
            continue
        calibrated = None if message is None else _on_views(reading, record, message, rows)
        found.append(
            AttentionMap(
                name=record.site.name,
                part=record.site.part,
                cross=record.site.cross,
                layer=record.layer,
                views=_views(reading, record),
                plain=plain,
                calibrated=calibrated,
                own=None
                if message is None
                else as_array(message.own)[..., _looking(reading, record, rows)].mean(axis=(0, 2)),
            )
        )
    return found


def _streams(reading: Reading, record: AttentionRecord) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The streams of a module's queries and of its keys."""
    queries, keys = record.plain.weights.shape[2:]
    return connected(record.site, queries, keys, sizes_of(reading), reading.layout.family.together)


def _looking(reading: Reading, record: AttentionRecord, rows: list[int]) -> list[int] | slice:
    """Query tokens whose attention is shown: those that predict, those of the question, or all."""
    if record.site.part == "decoder":
        return rows
    queries = () if record.site.part == "vision" else _streams(reading, record)[0]
    return place_of(QUESTION, queries, sizes_of(reading)) if QUESTION in queries else slice(None)


def _views(reading: Reading, record: AttentionRecord) -> tuple[View, ...]:
    """What the grids of `_on_views` lie on: patches, or the squares that tokens of the text stand for."""
    inside = record.site.part == "decoder" and not record.site.cross
    side = side_of_squares(reading.layout) if inside else 1
    return tuple(view.coarser(side) for view in reading.layout.views)


def _on_views(reading: Reading, record: AttentionRecord, step: Step, rows: list[int]) -> tuple[Array, ...] | None:
    """(H, rows, columns) per view of the weights that lie on the picture; None if the module does not see it."""
    layout, weights = reading.layout, as_array(step.weights)  # (B, H, N1, N2)
    views = range(len(layout.views))
    if record.site.part == "vision":
        return tuple(patches(layout, view, weights[view].mean(axis=1)) for view in views)
    _, keys = _streams(reading, record)
    if PICTURE in keys:
        columns = place_of(PICTURE, keys, sizes_of(reading))
        read_by = weights[0][:, _looking(reading, record, rows), columns].mean(axis=1)
        return tuple(patches(layout, view, read_by) for view in views)
    if record.site.part == "decoder" and layout.family.reads == "inside":
        read_by = of_tokens(weights[0][:, rows].mean(axis=1), len(reading.ids))
        return tuple(squares(layout, read_by[:, layout.columns]))
    return None
