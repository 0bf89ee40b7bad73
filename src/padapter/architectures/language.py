"""Language models: text decoders, text encoders and encoder-decoders, and the language parts of vision models."""

from __future__ import annotations

from padapter.architectures.table import CROSS_NAMES, Architecture, AttentionRow, FeedForwardRow, NodeQuery, Place

_HEADS = "config.num_attention_heads"


def _rotary(module: str, norm: str | None = None) -> AttentionRow:
    """A causal decoder with rotary embeddings; ``norm`` is the layout of what its ``q_norm`` puts out."""
    node_query = NodeQuery("q_proj") if norm is None else NodeQuery("q_norm", norm)
    return AttentionRow(module, "q_proj", "v_proj", "o_proj", _HEADS, decoder=True, node_query=node_query, cross=False)


def _gated(*modules: str) -> tuple[FeedForwardRow, ...]:
    return tuple(FeedForwardRow(module, input="gate_proj", output="down_proj") for module in modules)


DECODERS = Architecture(
    name="decoders",
    attention=(
        *map(_rotary, ("LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen2VLAttention")),
        *map(_rotary, ("Qwen2_5_VLAttention", "GemmaAttention", "Gemma2Attention", "MllamaTextSelfAttention")),
        _rotary("Qwen3Attention", norm="heads last"),
        _rotary("Qwen3VLTextAttention", norm="heads last"),
        _rotary("Gemma3Attention", norm="heads first"),
        # Queries of the cross-attention are normed, not rotated: what the attention function gets.
        AttentionRow("MllamaTextCrossAttention", "q_proj", "v_proj", "o_proj", _HEADS, decoder=True, cross=True),
        # One Conv1D makes query, key and value, or key and value beside another that makes the query.
        AttentionRow(
            "GPT2Attention", "q_attn|c_attn", "c_attn", "c_proj", "num_heads", decoder=True, cross=CROSS_NAMES
        ),
        # The query is scaled before it reaches the attention function.
        AttentionRow(
            "OPTAttention",
            "q_proj",
            "v_proj",
            "out_proj",
            "num_heads",
            True,
            node_query=NodeQuery("q_proj"),
            cross=False,
        ),
    ),
    feed_forward=(
        *_gated("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "Qwen3VLTextMLP"),
        *_gated("GemmaMLP", "Gemma2MLP", "Gemma3MLP", "MllamaTextMLP"),
        FeedForwardRow("GPT2MLP", input="c_fc", output="c_proj"),
        FeedForwardRow("OPTDecoderLayer", input="fc1", output="fc2"),
    ),
)

KOSMOS2 = Architecture(
    name="kosmos-2",
    # Its layer norm between the heads and the output projection is not part of the metric that distances are taken in.
    attention=(
        AttentionRow("KosmosTextAttention", "q_proj", "v_proj", "out_proj", "num_heads", True, cross=CROSS_NAMES),
    ),
    feed_forward=(FeedForwardRow("Kosmos2TextFFN", input="fc1", output="fc2"),),
    places=(Place(r"(?:.*\.)?image_to_text_projection\..*", part="connector", decoder=False),),
)

ENCODER_DECODERS = Architecture(
    name="encoder-decoders",
    attention=(
        AttentionRow("T5Attention", "q", "v", "o", "n_heads", decoder="is_decoder", cross=CROSS_NAMES),
        AttentionRow("BartAttention", "q_proj", "v_proj", "out_proj", "num_heads", "is_decoder", cross=CROSS_NAMES),
        AttentionRow("Pix2StructTextAttention", "query", "value", "output", "n_heads", True, cross=CROSS_NAMES),
    ),
    feed_forward=(
        FeedForwardRow("T5DenseActDense", input="wi", output="wo"),
        FeedForwardRow("T5DenseGatedActDense", input="wi_0", output="wo"),
        FeedForwardRow("BartEncoderLayer", input="fc1", output="fc2"),
        FeedForwardRow("BartDecoderLayer", input="fc1", output="fc2"),
        FeedForwardRow("Pix2StructTextDenseGatedActDense", input="wi_0", output="wo"),
    ),
)

BERT = Architecture(
    name="bert",
    attention=(
        AttentionRow(
            "BertSelfAttention", "query", "value", "..output.dense", "num_attention_heads", "is_decoder", cross=False
        ),
        AttentionRow(
            "BertCrossAttention", "query", "value", "..output.dense", "num_attention_heads", decoder=True, cross=True
        ),
    ),
    feed_forward=(FeedForwardRow("BertLayer", input="intermediate.dense", output="output.dense"),),
)
