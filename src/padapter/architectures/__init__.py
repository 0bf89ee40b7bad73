"""Where attention lives in a model family: a table of rows, and shims for families that need one.

To use the adapters on a model that is not in the table::

    from padapter.architectures import Architecture, AttentionRow, register_architecture

    register_architecture(Architecture(
        name="mine",
        attention=(AttentionRow(module="MyAttention", query="q_proj", value="v_proj", output="o_proj",
                                num_heads="num_heads", decoder=True),),
    ))

A module that calls transformers' attention interface and has projections of the usual names needs no row: the generic
rule (:mod:`padapter.architectures.generic`) reads it.
"""

from __future__ import annotations

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
from padapter.architectures.language import BERT, DECODERS, ENCODER_DECODERS, KOSMOS2
from padapter.architectures.mplug import MPLUG
from padapter.architectures.node_query import PackedSlice
from padapter.architectures.recording import (
    AttentionRecord,
    Message,
    attention_sites,
    record_attention,
    weight_gradients,
)
from padapter.architectures.shimmed import BLIP, GIT, TROCR
from padapter.architectures.sites import AttentionSite, FeedForwardSite, Site, describe_sites, find_sites, part_of
from padapter.architectures.table import (
    PARTS,
    UNIONS,
    Architecture,
    AttentionRow,
    FeedForwardRow,
    NodeQuery,
    Place,
    architectures,
    register_architecture,
    unregister_architecture,
)
from padapter.architectures.targets import WHERE, as_pattern, default_sites
from padapter.architectures.vision import CONNECTORS, VISION

__all__ = [
    "ATTENTION_NAME",
    "PARTS",
    "UNIONS",
    "WHERE",
    "Architecture",
    "AttentionAdapter",
    "AttentionCall",
    "AttentionRecord",
    "AttentionRow",
    "AttentionShim",
    "AttentionSite",
    "FeedForwardRow",
    "FeedForwardSite",
    "InterfaceShim",
    "Message",
    "NodeQuery",
    "PackedSlice",
    "Place",
    "Site",
    "architectures",
    "as_pattern",
    "attach",
    "attention_sites",
    "default_sites",
    "describe_sites",
    "detach",
    "find_sites",
    "p_adapter_attention",
    "part_of",
    "record_attention",
    "register_architecture",
    "unregister_architecture",
    "weight_gradients",
]

for _architecture in (BLIP, GIT, TROCR, DECODERS, ENCODER_DECODERS, BERT, KOSMOS2, VISION, CONNECTORS, MPLUG):
    register_architecture(_architecture)
