"""Where attention and feed-forward blocks live in a model family: rows of a table.

A row is data. It names module *classes* and, relative to a module of that class, the projections an adapter needs.
A relative path is a dotted path below the module; each leading dot beyond the first climbs one level, as in a Python
relative import: ``out_proj`` is a child, ``..output.dense`` is ``output.dense`` below the parent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from padapter.errors import UserError

if TYPE_CHECKING:
    from padapter.architectures.interface import AttentionShim


#: The names that transformers gives to modules of cross-attention, for classes that serve as self-attention too.
CROSS_NAMES = (
    r"(?:.*\.)?(?:crossattention|cross_attn|x_attn|encoder_attn|EncDecAttention|encoder_decoder_attention)(?:\..*)?"
)

#: What an attention module or feed-forward block belongs to. "decoder" writes the text, "text_encoder" reads one,
#: "fusion" joins what was read with the image, "connector" hands the image to a language model.
PARTS = ("decoder", "text_encoder", "fusion", "vision", "connector")

#: Several parts under one name. In those of "language" a row of the batch is a text.
UNIONS = {"language": ("decoder", "text_encoder", "fusion"), "all": PARTS}


@dataclass(frozen=True)
class NodeQuery:
    """Where the features of the query nodes come from, if not from the ``query`` of the attention function.

    That one is rotated in models with rotary embeddings, and scaled beforehand in some others. What is wanted is the
    query as it was projected (and normed).

    Attributes:
        path: relative path of the module whose output it is.
        layout: how that output is laid out: "flat" (B, N, H * dh), "heads last" (B, N, H, dh), "heads first"
            (B, H, N, dh), or "fused" (..., N, 3 * H * dh), queries first.
    """

    path: str
    layout: str = "flat"


@dataclass(frozen=True)
class AttentionRow:
    """One class of attention module.

    Attributes:
        module: name of the attention module's class; a subclass is another class and needs its own row.
        query: relative path of its query projection, or of the one that makes query, key and value at once.
            ``a|b`` is the first of the two that the module has.
        value: relative path of its value projection, which may be the same.
        output: relative path of its output projection, the Linear an adapter wraps.
        num_heads: dotted attribute of the attention module that holds the number of query heads.
        decoder: whether it generates token by token (causal self-attention, or cross-attention of a decoder). Value
            nodes then never see the other queries, so the degree is ``row``. A string is the dotted attribute of the
            module that says so.
        cross: whether its keys and values come from other tokens than its queries. A string is a regular expression
            of the full names of those modules of the class for which they do.
        padding: relative path of the self-attention that has just run over the same tokens, whose mask says which
            queries of an encoder's cross-attention are padding; None where there is none among them.
        part: which part of a model it belongs to: one of `PARTS`, or "language" for decoder or text encoder, whichever
            it is by ``decoder``. A vision row inside a text tower (``text_model``) counts as language.
        node_query: where the query nodes' features come from; None for the ``query`` of the attention function.
        shim: what makes the module call the attention function. None: it looks its function up in transformers'
            ``ALL_ATTENTION_FUNCTIONS`` by ``self.config._attn_implementation``. Otherwise a subclass of
            `AttentionShim` whose ``forward`` calls it.
    """

    module: str
    query: str
    value: str
    output: str
    num_heads: str
    decoder: bool | str
    part: str = "language"
    node_query: NodeQuery | None = None
    shim: type[AttentionShim] | None = None
    cross: bool | str = CROSS_NAMES
    padding: str | None = None


@dataclass(frozen=True)
class FeedForwardRow:
    """One class of module that holds a feed-forward block.

    Attributes:
        module: name of the class that holds the block.
        input: relative path of the first Linear; what enters it enters the block.
        output: relative path of the last Linear, the one an adapter wraps.
        part: which part of a model it belongs to; None for that of the attention module nearest to it.
    """

    module: str
    input: str
    output: str
    part: str | None = None


@dataclass(frozen=True)
class Place:
    """Where in the models of a family a class of attention module is something else than its row says.

    Attributes:
        names: regular expression of the full names of the attention modules there.
        part: the part of the model they belong to; None for that of their row.
        decoder: whether they generate token by token; None for what their row says.
    """

    names: str
    part: str | None = None
    decoder: bool | None = None


@dataclass(frozen=True)
class Architecture:
    """A model family: its attention modules and its feed-forward blocks.

    Attributes:
        places: where one class of module serves as several things; the first that fits a name counts.
    """

    name: str
    attention: tuple[AttentionRow, ...]
    feed_forward: tuple[FeedForwardRow, ...] = ()
    places: tuple[Place, ...] = ()


_ARCHITECTURES: dict[str, Architecture] = {}


def register_architecture(architecture: Architecture, *, replace: bool = False) -> None:
    """Add a model family to the table.

    Args:
        architecture: the rows to add.
        replace: whether rows of the same names may be overwritten.

    Raises:
        UserError: if the name or one of its module classes is already in the table and ``replace`` is False, or if a
            row is not well formed.
    """
    for row in architecture.attention:
        for field_name in ("module", "query", "value", "output", "num_heads"):
            if not getattr(row, field_name):
                raise UserError(f"architecture {architecture.name!r}: attention row has an empty {field_name!r}.")
    for part in (*(row.part for row in architecture.attention), *(place.part for place in architecture.places)):
        _check_part(architecture, part, ("language", *PARTS))
    for block in architecture.feed_forward:
        _check_part(architecture, block.part, PARTS)
    others = [known for name, known in _ARCHITECTURES.items() if name != architecture.name]
    clashes = sorted(_module_classes(architecture) & {name for known in others for name in _module_classes(known)})
    if architecture.name in _ARCHITECTURES:
        clashes.insert(0, architecture.name)
    if clashes and not replace:
        raise UserError(
            f"architecture {architecture.name!r}: already in the table: {', '.join(clashes)}. "
            "Pass replace=True to overwrite."
        )
    _ARCHITECTURES.pop(architecture.name, None)
    _ARCHITECTURES[architecture.name] = architecture


def unregister_architecture(name: str) -> None:
    """Remove a model family from the table; unknown names raise `UserError`."""
    if name not in _ARCHITECTURES:
        raise UserError(f"architecture {name!r} is not in the table; it has {', '.join(_ARCHITECTURES)}.")
    del _ARCHITECTURES[name]


def architectures() -> tuple[Architecture, ...]:
    """All registered model families, oldest first."""
    return tuple(_ARCHITECTURES.values())


def _check_part(architecture: Architecture, part: str | None, known: tuple[str, ...]) -> None:
    if part is not None and part not in known:
        raise UserError(f"architecture {architecture.name!r}: part {part!r} is not one of {', '.join(known)}.")


def _module_classes(architecture: Architecture) -> set[str]:
    return {row.module for row in architecture.attention} | {row.module for row in architecture.feed_forward}
