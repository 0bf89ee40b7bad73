"""Where the tokens of a picture are in a model: in its image encoder, in a connector, and in the text.

Nothing about model families is known here. The way of a picture's pixels is measured by `padapter.explain.views`, the
way of its tokens by `padapter.explain.tracing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from padapter.backbones import Backbone, TrainingExample
from padapter.backbones.encoder_decoder import EncoderDecoderBackbone
from padapter.errors import UserError
from padapter.explain.rules import Array
from padapter.explain.tracing import SEVERAL, Numbers, Pass, destinations, owners, run_without_attention
from padapter.explain.views import View, lattice, measure_rows, measure_views


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a picture are.

    The N tokens of the picture are those that the image encoder's first attention module sees, class tokens included,
    call by call and row by row. Tokens that no call brings together are in different streams. A token that goes to
    nothing has the number `NOWHERE` in what follows.

    Attributes:
        views: the rectangles that the model sees.
        patches: per view, (rows, columns): the token of each patch.
        streams: (N,), the stream of each token, from 0.
        vision: per attention module of the image encoder and call of it, (B, N1): its tokens.
        keys: per module that reads the picture by cross-attention, (N,): the key that each token is part of.
        columns: (N,), the position in the text that each token is part of.
        queries: (M,), the position in the text of each token of a connector with attention; empty without one.
        rows: per attention module of the connector, (N1,): which of its M tokens ask there.
        ahead: how many positions of the text stand in front of its first token.
        together: per attention module in which picture and question attend to both, (N,): the place of each token of
            the picture there.
    """

    views: tuple[View, ...]
    patches: tuple[Numbers, ...]
    streams: Numbers
    vision: Mapping[str, tuple[Numbers, ...]]
    keys: Mapping[str, Numbers]
    columns: Numbers
    queries: Numbers
    rows: Mapping[str, Numbers]
    ahead: int
    together: Mapping[str, Numbers] = field(default_factory=dict)

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the streams."""
        return tuple(f"image {number}" for number in range(int(self.streams.max()) + 1))

    def members(self, stream: int) -> Numbers:
        """The tokens of a stream, in its order."""
        return np.flatnonzero(self.streams == stream)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of tokens of each stream beside the text."""
        found = dict(zip(self.images, np.bincount(self.streams).tolist(), strict=True))
        return found | ({"queries": len(self.queries)} if len(self.queries) else {})

    def mixing(self, parts: Numbers, size: int, stream: int) -> Array:
        """Which tokens of a stream each of ``size`` things is made of.

        Args:
            parts: (N,), which of them each token is part of.
            size: how many there are.
            stream: of tokens.

        Returns:
            (size, tokens of the stream), equal shares, which sum to 1 over all streams; 0 for what is made of no token.
        """
        members = self.members(stream)
        there = np.flatnonzero(parts[members] >= 0)
        used = parts[members][there]
        found = np.zeros((size, len(members)))
        found[used, there] = 1 / np.bincount(parts[parts >= 0], minlength=size)[used]
        return found

    def grids(self, values: Array) -> list[Array]:
        """Numbers per token (..., N) as one grid (..., rows, columns) per view."""
        return [values[..., tokens] for tokens in self.patches]


def measure_layout(backbone: Backbone, image: Image.Image, batch: Mapping[str, torch.Tensor]) -> Layout:
    """Find out where the tokens of a picture are. Call it in evaluation mode with gradients enabled.

    Args:
        backbone: the model.
        image: RGB.
        batch: of ``backbone.collate`` for this picture and one text; its pixels require a gradient.

    Raises:
        UserError: by the model's type, if something is not as it is in models that can be followed.
    """
    try:
        return _measured(backbone, image, batch)
    except _NotFollowedError as problem:
        kind = getattr(backbone.base_model.config, "model_type", type(backbone.base_model).__name__)
        raise UserError(
            f"`padapter explain` cannot follow how this model of type {kind!r} reads the picture: {problem} In Python, "
            "padapter.architectures.record_attention reaches its attention."
        ) from problem


class _NotFollowedError(Exception):
    """Why relevance cannot be followed through a model; `measure_layout` says which model."""


def _measured(backbone: Backbone, image: Image.Image, batch: Mapping[str, torch.Tensor]) -> Layout:
    if isinstance(backbone, EncoderDecoderBackbone):
        raise _NotFollowedError(
            "it is an encoder-decoder, in which what a word of the answer rests on passes through another text."
        )
    if "pixel_values" not in batch:
        raise _NotFollowedError("its picture does not come as `pixel_values`.")
    passes = run_without_attention(backbone, batch)
    modules = _by_module(one for one in passes if one.site.part == "vision")
    if not modules:
        raise _NotFollowedError("its image encoder has no attention that padapter knows.")
    first = next(iter(modules.values()))
    tags = [one.tags for one in first if one.tags is not None]
    total = sum(one.query.shape[0] * one.query.shape[2] for one in first)
    vision = _tokens(modules, tags, total)
    codes = owners(_numbered(first), batch["pixel_values"])
    views, patches = _views(backbone, image, codes)
    decoder = _by_module(one for one in passes if one.site.part == "decoder")
    texts = [one.query for calls in decoder.values() for one in calls]
    if len({tuple(query.shape[::2]) for query in texts}) != 1 or texts[0].shape[0] != 1:
        raise _NotFollowedError("the attention modules of its text see texts of different lengths.")
    asking = [(query, np.arange(query.shape[2])[None]) for query in texts]
    columns = _single(
        _flat(destinations(asking, tags)),
        "a patch has a part in several positions of the text, by interpolation (give a smaller picture) or by "
        "attention that padapter does not know.",
    )
    rows, queries = _connector(_by_module(one for one in passes if one.site.part == "connector"), asking)
    keys = _keys([one for one in passes if one.site.cross and one.site.part != "vision"], tags)
    # What only a connector reads has to reach the text by the connector's tokens.
    beyond = keys.keys() - rows.keys() or (keys and (queries >= 0).any())
    if (columns < 0).all() and not beyond:
        raise _NotFollowedError(
            "without attention no patch reaches its text: attention that padapter does not know may read it."
        )
    streams = _streams(total, vision)
    ahead = texts[0].shape[2] - batch["input_ids"].shape[1]
    if ahead < 0 or (ahead and columns.max() >= ahead):
        raise _NotFollowedError(f"its text has {ahead} positions more than tokens, and which these are cannot be told.")
    together = _together([one for one in passes if one.site.part in ("text_encoder", "fusion")], tags)
    return Layout(views, patches, streams, vision, keys, columns, queries, rows, ahead, together)


def _by_module(passes: Iterable[Pass]) -> dict[str, list[Pass]]:
    found: dict[str, list[Pass]] = {}
    for one in passes:
        found.setdefault(one.site.name, []).append(one)
    return found


def _numbered(calls: Sequence[Pass]) -> list[tuple[torch.Tensor, Numbers]]:
    """Queries of some calls with numbers (B, N1), from one call to the next."""
    found, start = [], 0
    for one in calls:
        rows, _, queries, _ = one.query.shape
        found.append((one.query, np.arange(start, start + rows * queries).reshape(rows, queries)))
        start += rows * queries
    return found


def _flat(numbers: Sequence[Numbers]) -> Numbers:
    return np.concatenate([one.reshape(-1) for one in numbers])


def _single(numbers: Numbers, otherwise: str) -> Numbers:
    if (numbers == SEVERAL).any():
        raise _NotFollowedError(otherwise)
    return numbers


def _tokens(modules: Mapping[str, list[Pass]], tags: list[torch.Tensor], total: int) -> dict[str, tuple[Numbers, ...]]:
    """Per module of the image encoder and call, (B, N1): which tokens it sees."""
    names = list(modules)
    numbered = {name: _numbered(calls) for name, calls in modules.items()}
    kept = [name for name in names[1:] if sum(numbers.size for _, numbers in numbered[name]) == total]
    # Most encoders keep the order of their tokens: a look at all modules at once is enough.
    at_once = _flat(destinations([pair for name in kept for pair in numbered[name]], tags))
    in_order = {names[0], *(kept if np.array_equal(at_once, np.arange(total)) else ())}
    found = {}
    for name in names:
        pairs = numbered[name]
        if name not in in_order:
            size = sum(numbers.size for _, numbers in pairs)
            became = _single(_flat(destinations(pairs, tags)), f"module {name!r} joins or parts tokens of the picture.")
            if not np.array_equal(np.sort(became[became >= 0]), np.arange(size)):
                raise _NotFollowedError(f"module {name!r} does not see one token of the picture at each place.")
            order = np.empty(size, dtype=np.int64)
            order[became[became >= 0]] = np.flatnonzero(became >= 0)
            pairs = [(query, order[numbers]) for query, numbers in pairs]
        found[name] = tuple(numbers for _, numbers in pairs)
        for one in modules[name]:
            if name != names[0] and not one.query_moves.all():
                raise _NotFollowedError(f"module {name!r} sees what does not come from {names[0]!r}.")
            if one.key.shape[2] != one.query.shape[2]:
                raise _NotFollowedError(f"module {name!r} reads other tokens than it has.")
    return found


def _connector(modules: Mapping[str, list[Pass]], text: list[tuple[torch.Tensor, Numbers]]) -> tuple[Any, Numbers]:
    """Which tokens of the connector ask in each of its modules, and where in the text each of them stands."""
    if not modules:
        return {}, np.zeros(0, dtype=np.int64)
    first = next(iter(modules.values()))[0]
    if first.tags is None or any(len(calls) > 1 or calls[0].query.shape[0] > 1 for calls in modules.values()):
        raise _NotFollowedError("its connector reads several views of the picture apart.")
    size, rows = first.query.shape[2], {first.site.name: np.arange(first.query.shape[2])}
    for name, (one,) in list(modules.items())[1:]:
        reason = f"module {name!r} joins or parts tokens of the connector."
        became = _single(_flat(destinations(_numbered([one]), [first.tags])), reason)
        rows[name] = np.flatnonzero(became >= 0)
        if not np.array_equal(became[rows[name]], np.arange(one.query.shape[2])):
            raise _NotFollowedError(f"module {name!r} does not see the connector's tokens in their order.")
    reason = f"one of the connector's {size} tokens stands at several positions of the text."
    return rows, _single(_flat(destinations(text, [first.tags])), reason)


def _keys(crossing: Sequence[Pass], tags: list[torch.Tensor]) -> dict[str, Numbers]:
    """Per module that reads the picture by cross-attention, (N,): the key that each token is part of."""
    found: dict[str, Numbers] = {}
    for size in {one.key.shape[2] for one in crossing}:
        group = [one for one in crossing if one.key.shape[2] == size and one.key.shape[0] == 1]
        parts = _flat(destinations([(one.key, np.arange(size)[None]) for one in group], tags))
        _single(parts, "a patch has a part in several of the tokens that its text reads by cross-attention.")
        reads = np.isin(np.arange(size), parts)
        for one in group:
            if one.key_moves.any():
                if not np.array_equal(one.key_moves[0], reads):
                    raise _NotFollowedError(f"module {one.site.name!r} reads something beside the picture.")
                found[one.site.name] = parts
    return found


def _together(passes: Sequence[Pass], tags: list[torch.Tensor]) -> dict[str, Numbers]:
    """Per module of self-attention in which there are tokens of the picture, (N,): the place of each."""
    found = {}
    for one in passes:
        if not one.site.cross and one.query_moves.any():
            reason = f"module {one.site.name!r} joins or parts tokens of the picture."
            found[one.site.name] = _single(_flat(destinations(_numbered([one]), tags)), reason)
    return found


def _streams(total: int, vision: Mapping[str, tuple[Numbers, ...]]) -> Numbers:
    """(total,), numbers of the sets of tokens that calls bring together."""
    groups = {row.tobytes(): row for calls in vision.values() for numbers in calls for row in numbers}
    lowest = np.arange(total)
    while True:
        before = lowest.copy()
        for row in groups.values():
            lowest[np.isin(lowest, lowest[row])] = lowest[row].min()
        if np.array_equal(before, lowest):
            break
    found: Numbers = np.unique(lowest, return_inverse=True)[1]
    return found


def _views(backbone: Backbone, image: Image.Image, codes: Numbers) -> tuple[tuple[View, ...], tuple[Numbers, ...]]:
    """The rectangles that the model sees, and the token of each of their patches.

    Args:
        backbone: the model.
        image: the picture.
        codes: of the shape of its pixels: the token that each of their entries has a part in.
    """
    _single(codes, "its patches overlap.")
    flat = codes.ndim < 4 or codes.shape[-3] != 3
    shape = (-1, codes.shape[-1]) if flat else (-1, *codes.shape[-3:])

    def pixels_of(picture: Image.Image) -> Array:
        pixels = backbone.collate([TrainingExample(picture, "", (("yes", 1.0),))])["pixel_values"]
        return pixels.double().cpu().numpy().reshape(shape)

    found = _rows(pixels_of, image, codes.reshape(shape)) if flat else _tiles(pixels_of, image, codes.reshape(shape))
    if not found:
        raise _NotFollowedError("none of its patches shows a part of the picture.")
    return tuple(view for view, _ in found), tuple(tokens for _, tokens in found)


def _rows(pixels_of: Any, image: Image.Image, codes: Numbers) -> list[tuple[View, Numbers]]:
    """One view from patches that come as rows (n, numbers)."""
    if (codes != codes[:, :1]).any():
        raise _NotFollowedError("a row of its pixels has a part in several tokens.")
    centres = measure_rows(pixels_of, image.size)
    if len(centres) != len(codes):
        raise _NotFollowedError("it sees pictures of one size in different sizes.")
    seen = np.isfinite(centres).all(axis=1) & (codes[:, 0] >= 0)
    view, row, column = lattice(centres[seen])
    tokens = np.empty((view.rows, view.columns), dtype=np.int64)
    tokens[row, column] = codes[seen, 0]
    return [(view, tokens)]


def _tiles(pixels_of: Any, image: Image.Image, codes: Numbers) -> list[tuple[View, Numbers]]:
    """Views from pixels (T, 3, h, w): what of a tile no token is made of is cut off."""
    places = measure_views(pixels_of, image.size)
    if len(places) != len(codes):
        raise _NotFollowedError("it sees pictures of one size in different sizes.")
    found = []
    for view, (red, green, blue) in zip(places, codes, strict=True):
        if not (np.array_equal(red, green) and np.array_equal(red, blue)):
            raise _NotFollowedError("colours of a pixel have parts in different tokens.")
        if view is None or (red < 0).all():
            continue
        down, across = (np.flatnonzero((red >= 0).any(axis=axis)) for axis in (1, 0))
        shown = red[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
        tops, lefts = _starts(shown), _starts(shown.T)
        tokens = shown[np.ix_(tops, lefts)]
        side = shown.shape[0] // len(tops), shown.shape[1] // len(lefts)
        whole = np.kron(tokens, np.ones(side, dtype=np.int64))
        if not np.array_equal(whole, shown) or (tokens < 0).any() or len(np.unique(tokens)) != tokens.size:
            raise _NotFollowedError("its patches do not make a grid.")
        left, right = np.interp([across[0], across[-1] + 1], [0, view.columns], view.box[::2]).tolist()
        top, bottom = np.interp([down[0], down[-1] + 1], [0, view.rows], view.box[1::2]).tolist()
        found.append((View((left, top, right, bottom), *tokens.shape), tokens))
    return found


def _starts(codes: Numbers) -> Numbers:
    """Rows that differ from the one above."""
    return np.flatnonzero(np.append(True, (codes[1:] != codes[:-1]).any(axis=1)))
