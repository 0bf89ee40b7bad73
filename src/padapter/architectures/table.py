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

#: What an attention module or feed-forward block belongs to; ``where=`` of the configurations.
PARTS = ("language", "vision", "connector")


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
        part: which part of a model it belongs to, one of `PARTS`. A vision row inside a text tower
            (``text_model``) counts as language.
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
class Architecture:
    """A model family: its attention modules and its feed-forward blocks.

    Attributes:
        encoders: regular expression of the full names of attention modules that are encoders although their class
            serves as a decoder too.
        encoder_part: the part of a model that these belong to; None for that of their row.
    """

    name: str
    attention: tuple[AttentionRow, ...]
    feed_forward: tuple[FeedForwardRow, ...] = ()
    encoders: str | None = None
    encoder_part: str | None = None


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
        if row.part not in PARTS:
            raise UserError(f"architecture {architecture.name!r}: part {row.part!r} is not one of {', '.join(PARTS)}.")
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


def _module_classes(architecture: Architecture) -> set[str]:
    return {row.module for row in architecture.attention} | {row.module for row in architecture.feed_forward}
