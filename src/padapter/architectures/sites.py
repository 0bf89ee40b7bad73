"""Finding the attention and feed-forward blocks of a model that rows describe."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from padapter.architectures.generic import dotted, guess_row, original_class
from padapter.architectures.table import Architecture, AttentionRow, FeedForwardRow, Place, architectures
from padapter.errors import UserError


@dataclass(frozen=True)
class AttentionSite:
    """An attention module of a model, found through its row.

    Attributes:
        row: the row.
        name: full name of the attention module.
        module: the attention module.
        query: its query projection.
        num_heads: its number of query heads.
        decoder: whether it generates token by token.
        cross: whether its keys and values come from other tokens than its queries.
        part: the part of the model it belongs to, one of `PARTS`.
        output_parent: the module that holds the output projection.
        output_child: the attribute that holds it there.
        padding: the self-attention whose mask says which queries are padding, of an encoder's cross-attention.
    """

    row: AttentionRow
    name: str
    module: nn.Module
    query: nn.Module
    num_heads: int
    decoder: bool
    cross: bool
    part: str
    output_parent: nn.Module
    output_child: str
    padding: nn.Module | None = None

    def output(self) -> nn.Module:
        """What stands at the place of the output projection now."""
        return getattr(self.output_parent, self.output_child)


@dataclass(frozen=True)
class FeedForwardSite:
    """A feed-forward block of a model, found through its row: the name of its module, and its first Linear.

    ``decoder`` and ``part`` are those of the attention module nearest to it, unless the row names a part.
    """

    row: FeedForwardRow
    name: str
    input: nn.Module
    decoder: bool
    part: str


Site = AttentionSite | FeedForwardSite
SiteT = TypeVar("SiteT", bound=Site)

_TEXT_TOWER = re.compile(r"(?:.*\.)?(?:text_model|text_encoder)(?:\..*)?")


def find_sites(model: nn.Module) -> dict[str, Site]:
    """Find every attention and feed-forward block of a model that a row describes.

    An attention module of a class that is in no row is read by the generic rule (`guess_row`), if that can be done.

    Args:
        model: any module; already adapted models are read the same way.

    Returns:
        The sites by the full name of their output projection.

    Raises:
        UserError: if a module of a known class lacks what its row names.
    """
    attention = {row.module: (row, known) for known in architectures() for row in known.attention}
    feed_forward: dict[str, list[FeedForwardRow]] = {}
    for architecture in architectures():
        for block in architecture.feed_forward:
            feed_forward.setdefault(block.module, []).append(block)
    found: dict[str, AttentionSite] = {}
    blocks: list[tuple[str, FeedForwardRow]] = []
    for name, module in model.named_modules():
        class_name = original_class(module).__name__
        row, known = attention.get(class_name) or (guess_row(module), None)
        if row is not None:
            found.update([_attention_site(model, name, module, row, known)])
        blocks.extend((name, block) for block in feed_forward.get(class_name, ()))
    placed = (_feed_forward_site(model, name, block, found) for name, block in blocks)
    return {**found, **{output: site for output, site in placed if site is not None}}


def part_of(name: str, sites: Mapping[str, Site]) -> str | None:
    """The part of a model in which a module or parameter stands: that of the block it is in, or of the layer.

    Args:
        name: full name of the module or parameter, adapters included.
        sites: those of the model.

    Returns:
        One of `PARTS`, or None if it stands in no layer that has a site.
    """
    inside = next((site for output, site in sites.items() if f"{name}.".startswith(f"{output}.")), None)
    if inside is not None:
        return inside.part
    nearest = _nearest(name, sites.values())
    return None if nearest is None else nearest.part


def describe_sites(sites: Iterable[Site]) -> str:
    """The attention modules of a model that can be adapted, in words, for error messages."""
    rows = dict.fromkeys((site.row.module, site.row.output) for site in sites if isinstance(site, AttentionSite))
    return "; ".join(f"{output!r} of {module}" for module, output in rows) or "none in this model"


def resolve(name: str, path: str) -> str:
    """Full name of a relative path, seen from the module called ``name``.

    Raises:
        UserError: if the path climbs above the model.
    """
    rest = path.lstrip(".")
    climbs = max(len(path) - len(rest) - 1, 0)
    parts = name.split(".") if name else []
    if climbs > len(parts):
        raise UserError(f"path {path!r} climbs above the model when read from module {name!r}.")
    return ".".join([*parts[: len(parts) - climbs], rest])


def _attention_site(
    model: nn.Module, name: str, module: nn.Module, row: AttentionRow, architecture: Architecture | None
) -> tuple[str, AttentionSite]:
    output = resolve(name, row.output)
    paths = [output, resolve(name, row.value)] + ([resolve(name, row.node_query.path)] if row.node_query else [])
    for path in paths:
        _submodule(model, path, row.module, name)
    query = _submodule(model, resolve(name, _existing(module, row.query)), row.module, name)
    heads = dotted(module, row.num_heads)
    if not isinstance(heads, int):
        raise UserError(
            f"architecture row {row.module}: attribute {row.num_heads!r} of module {name!r} is not an integer number "
            "of heads; mend `num_heads` in the row."
        )
    decoder = row.decoder if isinstance(row.decoder, bool) else bool(dotted(module, row.decoder))
    part = "language" if row.part == "vision" and _TEXT_TOWER.fullmatch(name) else row.part
    place = _place(architecture, name)
    decoder, part = decoder if place.decoder is None else place.decoder, place.part or part
    if part == "language":
        part = "decoder" if decoder else "text_encoder"
    cross = row.cross if isinstance(row.cross, bool) else bool(re.fullmatch(row.cross, name))
    parent, _, child = output.rpartition(".")
    holder = model.get_submodule(parent)
    padding = None
    if row.padding is not None and cross and not decoder:
        padding = _submodule(model, resolve(name, row.padding), row.module, name)
    return output, AttentionSite(row, name, module, query, heads, decoder, cross, part, holder, child, padding)


def _place(architecture: Architecture | None, name: str) -> Place:
    places = () if architecture is None else architecture.places
    return next((place for place in places if re.fullmatch(place.names, name)), Place(".*"))


def _existing(module: nn.Module, paths: str) -> str:
    """The first of several paths, separated by ``|``, that the module has."""
    return next((path for path in paths.split("|") if isinstance(dotted(module, path), nn.Module)), paths)


def _feed_forward_site(
    model: nn.Module, name: str, row: FeedForwardRow, attention: dict[str, AttentionSite]
) -> tuple[str, FeedForwardSite | None]:
    output = resolve(name, row.output)
    _submodule(model, output, row.module, name)
    source = _submodule(model, resolve(name, row.input), row.module, name)
    if row.part is not None:
        return output, FeedForwardSite(row, name, source, decoder=False, part=row.part)
    nearest = _nearest(output, attention.values())
    if nearest is None:
        return output, None  # in no layer with an attention module: a pooling head, say, that many models never call
    return output, FeedForwardSite(row, name, source, nearest.decoder, nearest.part)


def _nearest(name: str, sites: Iterable[SiteT]) -> SiteT | None:
    """The site whose name shares most with another name, if they are in the same layer."""
    nearest = max(sites, key=lambda site: len(_shared(site.name, name)), default=None)
    same_layer = nearest is not None and any(part.isdigit() for part in _shared(nearest.name, name))
    return nearest if same_layer else None


def _shared(one: str, other: str) -> list[str]:
    """The leading parts that two module names share."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]


def _submodule(model: nn.Module, path: str, row: str, name: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise UserError(
            f"architecture row {row}: looked for module {path!r} from {name!r}, but the model has none. "
            "Mend the paths of the row (padapter.architectures.register_architecture)."
        ) from error
