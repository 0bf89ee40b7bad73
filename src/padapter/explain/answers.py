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
from padapter.explain.picture import handed_on, of_picture, received
from padapter.explain.questions import QUESTION, TEXT
from padapter.explain.reading import Reading, as_array, of_tokens, read
from padapter.explain.rules import Array
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
        UserError: if the model cannot be followed (`padapter.explain.layout`), the token is not in the text, or there
            is no such layer.
    """
    reading = read(backbone, picture, prompt, text)
    _check_layers(reading, layers)
    names = _names(backbone, reading)
    chosen = _chosen(names, token, text)
    groups: list[tuple[str, float, list[_Term]]] = [
        (names[number], float(reading.log_probs.detach()[number]), [_Term(reading, number, 1.0)]) for number in chosen
    ]
    if others:
        groups.append(_against(backbone, picture, prompt, text, others, reading))
    kept = _words(reading)
    maps, words = zip(*(_maps(terms, kept) for _, _, terms in groups), strict=True)
    side = Side(
        title=title,
        answer=answer,
        tokens=tuple(name for name, _, _ in groups),
        log_probs=np.array([value for _, value, _ in groups]),
        against=bool(others),
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


def _check_layers(reading: Reading, layers: Collection[int] | None) -> None:
    known = sorted({record.layer for record in reading.records if record.layer is not None})
    unknown = sorted(set(layers or ()) - set(known))
    if unknown:
        raise UserError(
            f"--layers: there is no layer {', '.join(map(str, unknown))}; this model has layers "
            f"{', '.join(map(str, known))}"
        )


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


def _words(reading: Reading) -> list[int]:
    """Which tokens of the prompt are no places for the picture."""
    layout = reading.layout
    pictured = {*layout.columns.tolist(), *layout.queries.tolist()}
    held = {index for index in range(reading.first) if index + layout.ahead in pictured}
    # One id for all of them is no word, and stands elsewhere too: where a line of the picture ends.
    ids = {reading.ids[index] for index in held}
    placeholder = ids if len(ids) == 1 and len(held) > 1 else set()
    return [index for index in range(reading.first) if index not in held and reading.ids[index] not in placeholder]


def _maps(terms: Sequence[_Term], kept: list[int]) -> tuple[list[Array], Array]:
    """Relevance of patches, (rows, columns) per view, and of the words of the prompt, summed over terms."""
    grids: list[Array] | None = None
    words = np.zeros(len(terms[0].reading.question) + len(kept))
    for term in terms:
        layout, row = term.reading.layout, term.reading.row(term.number)
        relevance = term.reading.relevance(term.number, term.factor)
        found = layout.grids(of_picture(relevance, layout, row))
        grids = found if grids is None else [one + other for one, other in zip(grids, found, strict=True)]
        taken = relevance.of("text", "text")[row] - np.eye(relevance.sizes["text"])[row]
        asked = relevance.of(TEXT, QUESTION)[row] if QUESTION in relevance.sizes else ()
        words += [*asked, *taken[layout.ahead :][kept]]
    if grids is None:
        raise ValueError("there is nothing to explain.")
    return grids, words


def _attention(reading: Reading, rows: list[int], layers: Collection[int] | None) -> list[AttentionMap]:
    modules: dict[str, list[AttentionRecord]] = {}
    for record in reading.records:
        if layers is None or record.layer in layers:
            modules.setdefault(record.site.name, []).append(record)
    found = []
    for name, records in modules.items():
        first = records[0]
        asking = rows if first.site.part == "decoder" else _asking(reading, first)
        plain = _on_views(reading, records, [record.plain for record in records], asking)
        if plain is None:
            continue
        messages = [record.messages[0].step for record in records if len(record.messages) == 1]
        passed = len(messages) == len(records)
        found.append(
            AttentionMap(
                name=name,
                part=first.site.part,
                cross=first.site.cross,
                layer=first.layer,
                views=reading.layout.views,
                plain=plain,
                calibrated=_on_views(reading, records, messages, asking) if passed else None,
                own=_own(messages, None if first.site.part in ("vision", "connector") else asking) if passed else None,
            )
        )
    return found


def _asking(reading: Reading, record: AttentionRecord) -> list[int]:
    """The queries whose attention is shown: where picture and question stand side by side, the question's."""
    tokens = record.plain.weights.shape[2]
    both = reading.layout.together.get(record.site.name)
    return list(range(tokens)) if both is None else np.setdiff1d(np.arange(tokens), both).tolist()


def _own(messages: Sequence[Step], asking: list[int] | None) -> Array:
    """(H,), the mean of own shares (B, H, N1) over calls, rows and tokens, or the tokens that ask."""
    shares = [as_array(step.own).swapaxes(0, 1) for step in messages]
    chosen = [(one if asking is None else one[..., asking]).reshape(len(one), -1) for one in shares]
    mean: Array = np.concatenate(chosen, axis=1).mean(axis=1)
    return mean


def _on_views(
    reading: Reading, records: Sequence[AttentionRecord], steps: Sequence[Step], asking: list[int]
) -> tuple[Array, ...] | None:
    """(H, rows, columns) per view of the weights that lie on the picture; None if the module does not see it."""
    layout, site = reading.layout, records[0].site
    weights = [as_array(step.weights) for step in steps]  # (B, H, N1, N2)
    if site.part == "vision":
        return tuple(layout.grids(received(layout, site.name, weights)))
    read_by = weights[0][0][:, asking].mean(axis=1)  # (H, N2)
    if site.cross and site.name in layout.keys:
        return tuple(layout.grids(handed_on(read_by, layout.keys[site.name])))
    if site.name in layout.together:
        return tuple(layout.grids(handed_on(read_by, layout.together[site.name])))
    if site.part == "decoder" and not site.cross and (layout.columns >= 0).any():
        return tuple(layout.grids(handed_on(of_tokens(read_by, layout.ahead + len(reading.ids)), layout.columns)))
    return None
