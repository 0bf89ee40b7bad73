"""The generic rule: attention modules of classes that are in no row of the table.

Most attention modules of transformers have the same shape: separate projections with one of a few names, a ``config``,
and a call of the attention interface. Such a module needs no row. Whatever is not certain is left alone, and a
configuration that finds nothing to adapt says what was looked for.
"""

from __future__ import annotations

import functools
import inspect

from torch import nn

from padapter.architectures.table import CROSS_NAMES, AttentionRow, NodeQuery

QUERY = ("q_proj", "query", "q", "wq")
VALUE = ("v_proj", "value", "v", "wv")
OUTPUT = ("o_proj", "out_proj", "output_proj", "o", "wo")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "config.num_attention_heads")


def guess_row(module: nn.Module) -> AttentionRow | None:
    """A row for an attention module of an unknown class, or None if it is not certain how it works.

    Certain means: it calls transformers' attention interface by ``self.config``; its query, value and output
    projections have names from `QUERY`, `VALUE` and `OUTPUT`; its number of heads is an attribute; and, where its
    queries are rotated, they are rotated as they were projected, without a norm in between.
    """
    cls = original_class(module)
    if "Attention" not in cls.__name__ or ("config" not in module.__dict__ and not hasattr(module, "config")):
        return None
    source = _forward_source(cls)
    children = {name for name, _ in module.named_children()}
    query, value, output = (next((n for n in names if n in children), None) for names in (QUERY, VALUE, OUTPUT))
    heads = next((path for path in _HEADS if isinstance(dotted(module, path), int)), None)
    if "ALL_ATTENTION_FUNCTIONS" not in source or not (query and value and output and heads):
        return None
    rotated = "rotary" in source or "position_embeddings" in source
    if rotated and any(name in children for name in ("q_norm", "q_layernorm", "query_norm")):
        return None
    causal = any(bool(getattr(module, name, False)) for name in ("is_decoder", "is_causal"))
    crosses = getattr(module, "is_cross_attention", None)
    return AttentionRow(
        module=cls.__name__,
        query=query,
        value=value,
        output=output,
        num_heads=heads,
        decoder=causal,
        part="vision" if not causal and hasattr(module.config, "patch_size") else "language",
        node_query=NodeQuery(query) if rotated else None,
        cross=crosses if isinstance(crosses, bool) else CROSS_NAMES,
    )


def original_class(module: nn.Module) -> type:
    """The class that a model's own code gave a module, below our shims and fused classes."""
    cls: type = type(module)
    while hasattr(cls, "padapter_original"):
        cls = cls.padapter_original
    return cls


@functools.cache
def _forward_source(cls: type) -> str:
    try:
        return inspect.getsource(cls.forward)  # type: ignore[attr-defined]
    except (OSError, TypeError, AttributeError):
        return ""


def dotted(module: nn.Module, path: str) -> object:
    """The attribute at a dotted path, None where there is none."""
    found: object = module
    for attribute in path.split("."):
        found = getattr(found, attribute, None)
    return found
