"""The entries of official BLIP files, and where they go."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from padapter.checkpoints.blip import CAPTION, VQA
from padapter.checkpoints.layout import Layout, below, unchanged

MODELS = {CAPTION: "BlipForConditionalGeneration", VQA: "BlipForQuestionAnswering"}
"""Arrangement -> class of transformers."""

VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.{end:weight|bias}": "embeddings.patch_embedding.{end}",
    "blocks.{i}.norm{n:1|2}.{end:weight|bias}": "encoder.layers.{i}.layer_norm{n}.{end}",
    "blocks.{i}.attn.qkv.{end:weight|bias}": "encoder.layers.{i}.self_attn.qkv.{end}",
    "blocks.{i}.attn.proj.{end:weight|bias}": "encoder.layers.{i}.self_attn.projection.{end}",
    "blocks.{i}.mlp.fc{n:1|2}.{end:weight|bias}": "encoder.layers.{i}.mlp.fc{n}.{end}",
    "norm.{end:weight|bias}": "post_layernorm.{end}",
}
TEXT = unchanged(
    (
        "embeddings.{which:word|position}_embeddings.weight",
        "embeddings.LayerNorm.{end:weight|bias}",
        "encoder.layer.{i}.{part:attention|crossattention}.self.{which:query|key|value}.{end:weight|bias}",
        "encoder.layer.{i}.{part:attention|crossattention}.output.{which:dense|LayerNorm}.{end:weight|bias}",
        "encoder.layer.{i}.intermediate.dense.{end:weight|bias}",
        "encoder.layer.{i}.output.{which:dense|LayerNorm}.{end:weight|bias}",
    )
)
HEAD = unchanged(
    (
        "transform.{which:dense|LayerNorm}.{end:weight|bias}",
        "decoder.{end:weight|bias}",
        "bias",
    )
)
NUMBERS = "embeddings.position_ids"

IMAGE, DECODER = below("visual_encoder", VISION, "vision_model"), below("text_decoder.bert", TEXT, "text_decoder.bert")
ENCODER = below("text_encoder", TEXT, "text_encoder")
PREDICTIONS = below("text_decoder.cls.predictions", HEAD, "text_decoder.cls.predictions")

#: What only pre-training and retrieval files hold.
PRETRAINING = {
    **{f"visual_encoder_m.{name}": "momentum copies" for name in VISION},
    **{f"text_encoder_m.{name}": "momentum copies" for name in (*TEXT, NUMBERS)},
    "{tower:vision|text}_proj_m.{end:weight|bias}": "momentum copies",
    "{tower:vision|text}_proj.{end:weight|bias}": "projections of the contrastive loss",
    "itm_head.{end:weight|bias}": "head of image-text matching",
    "temp": "temperature of the contrastive loss",
    "{side:image|text}_queue": "queues of the contrastive loss",
    "queue_ptr": "queues of the contrastive loss",
}
#: Adapters that the authors of the p-adapter trained with their own code; their files hold the whole model.
ADAPTERS = {
    f"text_decoder.bert.encoder.layer.{{i}}.{name}": "adapters of the p-adapter authors' code"
    for name in (
        "{part:attention|crossattention}.output.text_laplacian_adapter_{which:i|gate|o}.{end:weight|bias}",
        "{part:attention|crossattention}.output.laplacian_adapter_{which:p|mu}",
        "output.text_ffn_adapter.{which:0|2}.{end:weight|bias}",
    )
}

BIASES = ("text_decoder.cls.predictions.decoder.bias", "text_decoder.cls.predictions.bias")
#: Entries that the decoder computes with -> entries they are equal to in a file whose weights are tied.
TIES = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}
POSITIONS = "vision_model.embeddings.position_embedding"


def layout(arrangement: str) -> Layout:
    """The table of one arrangement: ``caption`` leaves the text encoder behind, ``vqa`` takes it along."""
    numbers = {f"{part}.{NUMBERS}": "position numbers" for part in ("text_decoder.bert", "text_encoder")}
    left = {} if arrangement == VQA else dict.fromkeys(ENCODER, "text encoder")
    taken = ENCODER if arrangement == VQA else {}
    return Layout({**IMAGE, **DECODER, **PREDICTIONS, **taken}, {**numbers, **left, **PRETRAINING}, ADAPTERS)


def arrangement_of(weights: Mapping[str, torch.Tensor]) -> str:
    """What a file was trained as: ``vqa`` where a text encoder of its own stands beside the decoder."""
    if not any(name.startswith("text_encoder.") for name in weights):
        return CAPTION
    if Layout({}, PRETRAINING).sort(weights).dropped:
        return CAPTION
    # Pre-training shares the embeddings, fine-tuning on questions does not. (A file may lack what only training needs.)
    words = [weights.get(f"{part}.embeddings.word_embeddings.weight") for part in ("text_encoder", "text_decoder.bert")]
    shared = words[0] is not None and words[1] is not None and torch.equal(words[0], words[1])
    return CAPTION if shared else VQA
