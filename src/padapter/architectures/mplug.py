"""mPLUG: one class of attention serves text encoder, fusion network and decoder; another the image encoder.

All of them call transformers' attention interface. A module of the text side says itself whether it is the decoder's.
The connected layer of the fusion network attends to image and text together, keys and queries alike.
"""

from __future__ import annotations

from padapter.architectures.table import CROSS_NAMES, Architecture, AttentionRow, FeedForwardRow, Place

MPLUG = Architecture(
    name="mplug",
    attention=(
        AttentionRow(
            module="MPlugTextAttention",
            query="query",
            value="value",
            output="..output.dense",
            num_heads="num_attention_heads",
            decoder="is_decoder",
            cross=CROSS_NAMES,
            padding="...attention.self",
        ),
        AttentionRow(
            module="MPlugVisionAttention",
            query="q_proj",
            value="v_proj",
            output="out_proj",
            num_heads="num_heads",
            decoder=False,
            part="vision",
            cross=False,
        ),
    ),
    feed_forward=(
        *(
            FeedForwardRow(module, input="intermediate.dense", output="output.dense")
            for module in ("MPlugTextLayer", "MPlugCoAttentionLayer", "MPlugConnectedLayer")
        ),
        FeedForwardRow(module="MPlugVisionMLP", input="fc1", output="fc2"),
    ),
    places=(Place(r"(?:.*\.)?fusion_encoder\..*", part="fusion"),),
)
