"""Where attention lives in a model family: a table of rows, and shims for families that need one.

To use the adapters on a model that is not in the table::

    from padapter.architectures import Architecture, AttentionRow, register_architecture

    register_architecture(Architecture(
        name="mine",
        attention=(AttentionRow(module="MyAttention", query="q_proj", value="v_proj", output="o_proj",
                                num_heads="num_heads", decoder=True),),
    ))

The node features of the queries are the ``query`` handed to the attention function. Models with rotary embeddings,
whose features are the query before rotation, need a shim that hands ``node_query`` to `p_adapter_attention`.
"""

from __future__ import annotations

from padapter.architectures.blip import BLIP
from padapter.architectures.interface import (
    ATTENTION_NAME,
    AttentionAdapter,
    AttentionCall,
    AttentionShim,
    InterfaceShim,
    attach,
    detach,
    p_adapter_attention,
)
from padapter.architectures.table import (
    Architecture,
    AttentionRow,
    AttentionSite,
    FeedForwardRow,
    FeedForwardSite,
    Site,
    Targets,
    architectures,
    default_targets,
    describe_rows,
    find_sites,
    register_architecture,
    unregister_architecture,
)

__all__ = [
    "ATTENTION_NAME",
    "Architecture",
    "AttentionAdapter",
    "AttentionCall",
    "AttentionRow",
    "AttentionShim",
    "AttentionSite",
    "FeedForwardRow",
    "FeedForwardSite",
    "InterfaceShim",
    "Site",
    "Targets",
    "architectures",
    "attach",
    "default_targets",
    "describe_rows",
    "detach",
    "find_sites",
    "p_adapter_attention",
    "register_architecture",
    "unregister_architecture",
]

register_architecture(BLIP)
