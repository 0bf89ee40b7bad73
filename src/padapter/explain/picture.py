"""The rules of relevance for a picture's tokens, wherever a layout says that they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from padapter.errors import UserError
from padapter.explain.layout import Layout
from padapter.explain.rules import Array, Relevance
from padapter.explain.tracing import Numbers


def attend_picture(relevance: Relevance, layout: Layout, name: str, calls: Sequence[tuple[Array, Array]]) -> None:
    """A layer of the image encoder: all calls of a module are one self-attention of each stream.

    Tokens that a module sees in different rows or calls, as windows or packed pictures are, do not attend to each
    other: blocks of one matrix.

    Args:
        relevance: to add to.
        layout: where the tokens are.
        name: of the module.
        calls: Abar (B, N1, N1) and own shares (B, N1) of each.

    Raises:
        UserError: if the calls are others than those that were measured.
    """
    seen = layout.vision.get(name, ())
    if [numbers.shape for numbers in seen] != [own.shape for _, own in calls]:
        raise UserError(
            f"attention module {name!r} is called otherwise than it was when the way of the picture's tokens was "
            "measured; relevance cannot be followed through this model."
        )
    rows = [
        (tokens, *values)
        for numbers, (attention, own) in zip(seen, calls, strict=True)
        for tokens, *values in zip(numbers, attention, own, strict=True)
    ]
    for stream, image in enumerate(layout.images):
        members = layout.members(stream)
        inside = [row for row in rows if layout.streams[row[0][0]] == stream]
        if not inside:
            continue
        matrix, shares = np.zeros((len(members), len(members))), np.zeros(len(members))
        for tokens, attention, own in inside:
            places = np.searchsorted(members, tokens)
            matrix[np.ix_(places, places)] = attention
            shares[places] = own
        relevance.attend_self(image, matrix, shares)


def attend_to_picture(
    relevance: Relevance, layout: Layout, name: str, asking: tuple[str, Numbers], attention: Array, own: Array
) -> None:
    """A layer by which text, or a connector, reads the picture by cross-attention.

    A key of several tokens hands what is attended to it on to them in equal parts. Keys that no token of the picture is
    part of hand nothing on: a connector's constants.

    Args:
        relevance: to add to.
        layout: where the tokens are.
        name: of the module.
        asking: the stream of the queries, and which of its tokens they are, (N1,).
        attention: (N1, N2), Abar.
        own: (N1,), the same of own shares.

    Raises:
        UserError: if the module does not read the picture, or has other keys than those that were measured.
    """
    stream, tokens = asking
    parts, keys = layout.keys.get(name), attention.shape[1]
    if parts is None or parts.max() >= keys:
        raise UserError(
            f"attention module {name!r} reads something else than the picture; relevance cannot be followed through "
            "this model."
        )
    whole, shares = np.zeros((relevance.sizes[stream], keys)), np.zeros(relevance.sizes[stream])
    whole[tokens], shares[tokens] = attention, own
    read = [number for number in range(len(layout.images)) if (parts[layout.members(number)] >= 0).any()]
    for number in read:
        # One layer: every stream is read by the tokens as they were, and their own share counts once.
        last = number == read[-1]
        mixing = layout.mixing(parts, keys, number)
        relevance.attend_cross(stream, layout.images[number], whole @ mixing, shares if last else None)


def splice_picture(relevance: Relevance, layout: Layout) -> None:
    """Connect the text with the tokens of the picture, or of a connector, that stand in it; behind all layers."""
    size = relevance.sizes["text"]
    if len(layout.queries):
        there = np.flatnonzero(layout.queries >= 0)
        chosen = np.eye(len(layout.queries))[there]
        relevance.splice("text", "queries", layout.queries[there], chosen)
    for number, image in enumerate(layout.images):
        mixing = layout.mixing(layout.columns, size, number)
        columns = np.flatnonzero(mixing.any(axis=1))
        if len(columns):
            relevance.splice("text", image, columns, mixing[columns])


def of_picture(relevance: Relevance, layout: Layout, row: int) -> Array:
    """(N,), what a position of the text has taken from each token of the picture."""
    found = np.empty(len(layout.streams))
    for number, image in enumerate(layout.images):
        found[layout.members(number)] = relevance.of("text", image)[row]
    return found


def received(layout: Layout, name: str, weights: Sequence[Array]) -> Array:
    """Attention that each token of the picture receives in the image encoder, the mean over the tokens of its stream.

    Args:
        layout: where the tokens are.
        name: of the module.
        weights: of each of its calls, (B, H, N1, N1).

    Returns:
        (H, N); sums to 1 over a stream.
    """
    found = np.zeros((weights[0].shape[1], len(layout.streams)))
    for numbers, call in zip(layout.vision[name], weights, strict=True):
        for tokens, row in zip(numbers, call, strict=True):
            found[:, tokens] = row.sum(axis=1)
    means: Array = found / np.bincount(layout.streams)[layout.streams]
    return means


def handed_on(values: Array, parts: Numbers) -> Array:
    """Numbers (H, n) of things as numbers (H, N) of the tokens that they are made of, in equal parts.

    Args:
        values: (H, n).
        parts: (N,), which thing each token is part of.
    """
    count = np.bincount(parts[parts >= 0], minlength=values.shape[-1])
    shares = values / np.maximum(count, 1)
    handed: Array = np.where(parts >= 0, shares[:, parts], 0.0)
    return handed
