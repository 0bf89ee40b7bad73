"""Image encoders, and what connects them to a language model."""

from __future__ import annotations

from padapter.architectures.table import CROSS_NAMES, Architecture, AttentionRow, FeedForwardRow, NodeQuery


def _separate(module: str, output: str = "out_proj", heads: str = "num_heads") -> AttentionRow:
    return AttentionRow(module, "q_proj", "v_proj", output, heads, decoder=False, part="vision", cross=False)


def _fused(module: str, output: str, *, rotary: bool = False) -> AttentionRow:
    node_query = NodeQuery("qkv", "fused") if rotary else None
    return AttentionRow(
        module, "qkv", "qkv", output, "num_heads", False, part="vision", node_query=node_query, cross=False
    )


def _two_layers(*modules: str) -> tuple[FeedForwardRow, ...]:
    return tuple(FeedForwardRow(module, input="fc1", output="fc2") for module in modules)


VISION = Architecture(
    name="vision",
    attention=(
        _separate("ViTAttention", "o_proj", "num_attention_heads"),
        _separate("Dinov2Attention", "o_proj", "num_attention_heads"),
        _separate("MllamaVisionAttention", "o_proj"),
        _separate("InternVLVisionAttention", "projection_layer"),
        *map(_separate, ("CLIPAttention", "SiglipAttention", "GitVisionAttention", "Kosmos2VisionAttention")),
        *map(_separate, ("Idefics3VisionAttention", "SmolVLMVisionAttention")),
        AttentionRow("Pix2StructVisionAttention", "query", "value", "output", "n_heads", False, "vision", cross=False),
        AttentionRow(
            "PixtralAttention",
            "q_proj",
            "v_proj",
            "o_proj",
            "num_heads",
            False,
            "vision",
            NodeQuery("q_proj"),
            cross=False,
        ),
        _fused("Blip2Attention", "projection"),
        _fused("InstructBlipAttention", "projection"),
        _fused("Florence2VisionWindowAttention", "proj"),
        _fused("VisionAttention", "proj", rotary=True),  # Qwen2-VL
        _fused("Qwen2_5_VLVisionAttention", "proj", rotary=True),
        _fused("Qwen3VLVisionAttention", "proj", rotary=True),
    ),
    feed_forward=(
        *_two_layers("ViTMLP", "CLIPMLP", "SiglipMLP", "Dinov2MLP", "Blip2MLP", "InstructBlipMLP", "GitVisionMLP"),
        *_two_layers("Kosmos2VisionMLP", "VisionMlp", "Idefics3VisionMLP", "SmolVLMVisionMLP", "InternVLVisionMLP"),
        *_two_layers("MllamaVisionMLP", "Florence2VisionMLP"),
        FeedForwardRow("Pix2StructVisionMlp", input="wi_0", output="wo"),
        FeedForwardRow("Qwen2_5_VLMLP", input="gate_proj", output="down_proj"),
        FeedForwardRow("PixtralMLP", input="gate_proj", output="down_proj"),
        FeedForwardRow("Dinov2SwiGLUFFN", input="gate_proj", output="down_proj"),
        FeedForwardRow("Qwen3VLVisionMLP", input="linear_fc1", output="linear_fc2"),
    ),
)

_QFORMERS = ("Blip2QFormer", "InstructBlipQFormer")

CONNECTORS = Architecture(
    name="connectors",
    attention=tuple(
        AttentionRow(
            f"{name}MultiHeadAttention",
            "query",
            "value",
            "..output.dense",
            "num_attention_heads",
            False,
            "connector",
            cross=CROSS_NAMES,
        )
        for name in _QFORMERS
    ),
    feed_forward=(
        *(
            FeedForwardRow(f"{name}Layer", input="intermediate_query.dense", output="output_query.dense")
            for name in _QFORMERS
        ),
        *(
            FeedForwardRow(f"{name}MultiModalProjector", input="linear_1", output="linear_2", part="connector")
            for name in ("Llava", "LlavaOnevision", "InternVL")
        ),
        FeedForwardRow("PaliGemmaMultiModalProjector", input="linear", output="linear", part="connector"),
        FeedForwardRow("Idefics3SimpleMLP", input="proj", output="proj", part="connector"),
        FeedForwardRow("SmolVLMSimpleMLP", input="proj", output="proj", part="connector"),
        FeedForwardRow("PatchMerger", input="mlp.0", output="mlp.2", part="connector"),
        FeedForwardRow("Qwen2_5_VLPatchMerger", input="mlp.0", output="mlp.2", part="connector"),
        FeedForwardRow("Qwen3VLVisionPatchMerger", input="linear_fc1", output="linear_fc2", part="connector"),
    ),
)
