"""Where attention and feed-forward blocks live in a model family: rows of a table.

A row is data. It names module *classes* and, relative to a module of that class, the projections an adapter needs.
A relative path is a dotted path below the module; each leading dot beyond the first climbs one level, as in a Python
relative import: ``out_proj`` is a child, ``..output.dense`` is ``output.dense`` below the parent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from padapter.errors import UserError

if TYPE_CHECKING:
    from padapter.architectures.interface import AttentionShim


@dataclass(frozen=True)
class AttentionRow:
    """One class of attention module.

    Attributes:
        module: name of the attention module's class; a subclass is another class and needs its own row.
        query: relative path of its query projection.
        value: relative path of its value projection.
        output: relative path of its output projection, the Linear an adapter wraps.
        num_heads: dotted attribute of the attention module that holds the number of query heads.
        decoder: whether it generates token by token (causal self-attention, or cross-attention of a decoder). Value
            nodes then never see the other queries, so the degree is ``row``.
        shim: what makes the module call the attention function. None: it looks its function up in transformers'
            ``ALL_ATTENTION_FUNCTIONS`` by ``self.config._attn_implementation``. Otherwise a subclass of
            `AttentionShim` whose ``forward`` calls it.
    """

    module: str
    query: str
    value: str
    output: str
    num_heads: str
    decoder: bool
    shim: type[AttentionShim] | None = None


@dataclass(frozen=True)
class FeedForwardRow:
    """One class of module that holds a feed-forward block.

    Attributes:
        module: name of the class that holds the block.
        input: relative path of the first Linear; what enters it enters the block.
        output: relative path of the last Linear, the one an adapter wraps.
    """

    module: str
    input: str
    output: str


@dataclass(frozen=True)
class Targets:
    """Default output projections of one model type, as regular expressions over full module names.

    ``{layer}`` stands for the layer index; it is filled with any number or with the layers asked for.
    """

    attention: str
    feed_forward: str


@dataclass(frozen=True)
class Architecture:
    """A model family: its attention modules, its feed-forward blocks, its default targets by model type."""

    name: str
    attention: tuple[AttentionRow, ...]
    feed_forward: tuple[FeedForwardRow, ...] = ()
    targets: Mapping[str, Targets] = field(default_factory=dict)


@dataclass(frozen=True)
class AttentionSite:
    """An attention module of a model, found through its row.

    Attributes:
        row: the row.
        name: full name of the attention module.
        module: the attention module.
        query: its query projection.
        num_heads: its number of query heads.
        output_parent: the module that holds the output projection.
        output_child: the attribute that holds it there.
    """

    row: AttentionRow
    name: str
    module: nn.Module
    query: nn.Module
    num_heads: int
    output_parent: nn.Module
    output_child: str

    def output(self) -> nn.Module:
        """What stands at the place of the output projection now."""
        return getattr(self.output_parent, self.output_child)


@dataclass(frozen=True)
class FeedForwardSite:
    """A feed-forward block of a model, found through its row: the name of its module, and its first Linear."""

    row: FeedForwardRow
    name: str
    input: nn.Module


Site = AttentionSite | FeedForwardSite

_ARCHITECTURES: dict[str, Architecture] = {}


def register_architecture(architecture: Architecture, *, replace: bool = False) -> None:
    """Add a model family to the table.

    Args:
        architecture: the rows to add.
        replace: whether rows of the same names may be overwritten.

    Raises:
        UserError: if the name, one of its module classes or one of its model types is already in the table and
            ``replace`` is False, or if a row is not well formed.
    """
    for row in architecture.attention:
        for field_name in ("module", "query", "value", "output", "num_heads"):
            if not getattr(row, field_name):
                raise UserError(f"architecture {architecture.name!r}: attention row has an empty {field_name!r}.")
    others = [known for name, known in _ARCHITECTURES.items() if name != architecture.name]
    taken_modules = {name for known in others for name in _module_classes(known)}
    taken_types = {model_type for known in others for model_type in known.targets}
    clashes = sorted((_module_classes(architecture) & taken_modules) | (set(architecture.targets) & taken_types))
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


def find_sites(model: nn.Module) -> dict[str, Site]:
    """Find every attention and feed-forward block of a model that a row describes.

    Args:
        model: any module; already adapted models are read the same way.

    Returns:
        The sites by the full name of their output projection.

    Raises:
        UserError: if a module of a known class lacks what its row names.
    """
    attention = {row.module: row for known in architectures() for row in known.attention}
    feed_forward: dict[str, list[FeedForwardRow]] = {}
    for known in architectures():
        for row in known.feed_forward:
            feed_forward.setdefault(row.module, []).append(row)
    found: dict[str, Site] = {}
    for name, module in model.named_modules():
        class_name = getattr(type(module), "padapter_original", type(module)).__name__
        if class_name in attention:
            found.update([_attention_site(model, name, module, attention[class_name])])
        for block in feed_forward.get(class_name, ()):
            found.update(_feed_forward_site(model, name, block))
    return found


def default_targets(
    model_type: str | None, *, attention: bool, feed_forward: bool, layers: Iterable[int] | None = None
) -> str | None:
    """Regular expression of the default output projections of a model type, or None if no row names it.

    Args:
        model_type: ``config.model_type`` of the model.
        attention: whether to include attention output projections.
        feed_forward: whether to include feed-forward output projections.
        layers: indices of the layers to include; None means all.
    """
    layer = r"\d+" if layers is None else "(?:" + "|".join(str(index) for index in sorted(set(layers))) + ")"
    for known in reversed(architectures()):
        if model_type is not None and model_type in known.targets:
            targets = known.targets[model_type]
            chosen = [targets.attention] * attention + [targets.feed_forward] * feed_forward
            return "|".join(f"(?:{pattern.replace('{layer}', layer)})" for pattern in chosen)
    return None


def describe_rows() -> str:
    """The attention rows of the table in words, for error messages."""
    rows = [row for known in architectures() for row in known.attention]
    return "; ".join(f"{row.output!r} of {row.module}" for row in rows) or "none"


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


def _module_classes(architecture: Architecture) -> set[str]:
    return {row.module for row in architecture.attention} | {row.module for row in architecture.feed_forward}


def _attention_site(model: nn.Module, name: str, module: nn.Module, row: AttentionRow) -> tuple[str, AttentionSite]:
    output = resolve(name, row.output)
    for path in (output, resolve(name, row.value)):
        _submodule(model, path, row.module, name)
    query = _submodule(model, resolve(name, row.query), row.module, name)
    heads: object = module
    for attribute in row.num_heads.split("."):
        heads = getattr(heads, attribute, None)
    if not isinstance(heads, int):
        raise UserError(
            f"architecture row {row.module}: attribute {row.num_heads!r} of module {name!r} is not an integer number "
            "of heads; mend `num_heads` in the row."
        )
    parent, _, child = output.rpartition(".")
    return output, AttentionSite(row, name, module, query, heads, model.get_submodule(parent), child)


def _feed_forward_site(model: nn.Module, name: str, row: FeedForwardRow) -> Iterator[tuple[str, FeedForwardSite]]:
    output = resolve(name, row.output)
    _submodule(model, output, row.module, name)
    yield output, FeedForwardSite(row, name, _submodule(model, resolve(name, row.input), row.module, name))


def _submodule(model: nn.Module, path: str, row: str, name: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise UserError(
            f"architecture row {row}: looked for module {path!r} from {name!r}, but the model has none. "
            "Mend the paths of the row (padapter.architectures.register_architecture)."
        ) from error
