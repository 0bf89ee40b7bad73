"""BLIP, GIT and TrOCR: families that never look at ``ALL_ATTENTION_FUNCTIONS``, and so need shims.

BLIP also never hands ``encoder_attention_mask`` to its text model's cross-attention; the shim receives the same
arguments as the original and so has the same limit: all image tokens are attended to.

The same classes serve as a bidirectional text encoder in BLIP's question-answering and retrieval models, under the name
``text_encoder``; a bare ``BlipTextModel`` may be either, and is read as a decoder, whose degree is right for both.
"""

from __future__ import annotations

from padapter.architectures.shims import BlipTextShim, BlipVisionShim, GitShim, TrOCRShim
from padapter.architectures.table import CROSS_NAMES, Architecture, AttentionRow, FeedForwardRow, Place

BLIP = Architecture(
    name="blip",
    attention=(
        AttentionRow(
            module="BlipTextSelfAttention",
            query="query",
            value="value",
            output="..output.dense",
            num_heads="num_attention_heads",
            decoder=True,
            shim=BlipTextShim,
            cross=CROSS_NAMES,
            padding="...attention.self",
        ),
        AttentionRow(
            module="BlipAttention",
            query="qkv",
            value="qkv",
            output="projection",
            num_heads="num_heads",
            decoder=False,
            part="vision",
            shim=BlipVisionShim,
            cross=False,
        ),
    ),
    feed_forward=(
        FeedForwardRow(module="BlipTextLayer", input="intermediate.dense", output="output.dense"),
        FeedForwardRow(module="BlipMLP", input="fc1", output="fc2"),
    ),
    # BlipForQuestionAnswering and BlipForImageTextRetrieval have a bidirectional encoder of the same class.
    places=(Place(r"(?:.*\.)?text_encoder\..*", decoder=False),),
)

GIT = Architecture(
    name="git",
    attention=(
        AttentionRow(
            module="GitSelfAttention",
            query="query",
            value="value",
            output="..output.dense",
            num_heads="num_attention_heads",
            decoder=True,
            shim=GitShim,
            cross=False,
        ),
    ),
    feed_forward=(FeedForwardRow(module="GitLayer", input="intermediate.dense", output="output.dense"),),
)

TROCR = Architecture(
    name="trocr",
    attention=(
        AttentionRow(
            module="TrOCRAttention",
            query="q_proj",
            value="v_proj",
            output="out_proj",
            num_heads="num_heads",
            decoder=True,
            shim=TrOCRShim,
            cross=CROSS_NAMES,
        ),
    ),
    feed_forward=(FeedForwardRow(module="TrOCRDecoderLayer", input="fc1", output="fc2"),),
)
