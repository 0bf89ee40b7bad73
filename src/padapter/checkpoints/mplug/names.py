"""The entries of official mPLUG files, and where they go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from padapter.checkpoints.layout import Layout, below, unchanged
from padapter.checkpoints.mplug import VQA
from padapter.errors import UserError
from padapter.models.mplug.configuration import MPlugConfig, MPlugTextConfig

MODELS = {"caption": "MPlugForConditionalGeneration", "vqa": "MPlugForQuestionAnswering"}
"""Arrangement -> class of ours."""

#: The blocks of CLIP; ``in_proj`` is query, key and value one below the other.
BLOCK = {
    "attn.in_proj_{end:weight|bias}": "self_attn.in_proj.{end}",
    "attn.out_proj.{end:weight|bias}": "self_attn.out_proj.{end}",
    "ln_{n:1|2}.{end:weight|bias}": "layer_norm{n}.{end}",
    "mlp.c_fc.{end:weight|bias}": "mlp.fc1.{end}",
    "mlp.c_proj.{end:weight|bias}": "mlp.fc2.{end}",
}
BLOCKS = "transformer.resblocks.{i}"
IMAGE = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_{which:pre|post}.{end:weight|bias}": "{which}_layernorm.{end}",
    **below(BLOCKS, BLOCK, "layers.{i}"),
}
BRIDGE = {
    "visn_fc.{end:weight|bias}": "bridge.dense.{end}",
    "visn_layer_norm.{end:weight|bias}": "bridge.LayerNorm.{end}",
}
#: CLIP's text tower and its projection, in the file because the image encoder was taken from there.
CLIP_TEXT = (
    *(f"visual_encoder.{BLOCKS}.{name}" for name in BLOCK),
    "visual_encoder.token_embedding.weight",
    "visual_encoder.positional_embedding",
    "visual_encoder.ln_final.{end:weight|bias}",
    "visual_encoder.text_projection",
    "visual_encoder.logit_scale",
)
EMBEDDINGS = unchanged(
    (
        "embeddings.{which:word|position|token_type}_embeddings.weight",
        "embeddings.LayerNorm.{end:weight|bias}",
    )
)
SELF, CROSS, REST = (
    unchanged(patterns)
    for patterns in (
        (
            "attention.self.{which:query|key|value}.{end:weight|bias}",
            "attention.output.{which:dense|LayerNorm}.{end:weight|bias}",
        ),
        (
            "crossattention.self.{which:query|key|value}.{end:weight|bias}",
            "crossattention.output.{which:dense|LayerNorm}.{end:weight|bias}",
        ),
        (
            "intermediate.dense.{end:weight|bias}",
            "output.{which:dense|LayerNorm}.{end:weight|bias}",
        ),
    )
)
LAYERS = "encoder.layer.{i}"
NUMBERS = "embeddings.position_ids"
TEXT = {**EMBEDDINGS, **below(LAYERS, {**SELF, **REST}, LAYERS)}
DECODER = {**EMBEDDINGS, **below(LAYERS, {**SELF, **CROSS, **REST}, LAYERS)}
HEAD = unchanged(("transform.{which:dense|LayerNorm}.{end:weight|bias}", "decoder.{end:weight|bias}", "bias"))

#: What only pre-training, or distillation, needs.
TRAINING = {
    "{part:visual_encoder|text_encoder|fusion_encoder|text_decoder}_m.{rest:.+}": "momentum copies",
    "visn_{which:fc|layer_norm}_m.{end:weight|bias}": "momentum copies",
    "{tower:vision|text}_proj_m.{end:weight|bias}": "momentum copies",
    "{tower:vision|text}_proj.{end:weight|bias}": "projections of the contrastive loss",
    "itm_head.{end:weight|bias}": "head of image-text matching",
    "temp": "temperature of the contrastive loss",
    "{side:image|text|idx}_queue": "queues of the contrastive loss",
    "queue_ptr": "queues of the contrastive loss",
    "{part:text|fusion}_encoder.cls.{rest:.+}": "head of masked language modelling",
}
#: Equal in every file, as the official code has one tensor for both.
TIES = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.bias": "text_decoder.cls.predictions.decoder.bias",
}
POSITIONS = "vision_model.embeddings.position_embedding.weight"
MODELSCOPE = "model."


def layout(config: MPlugConfig, arrangement: str, first: int) -> Layout:
    """The table of a model.

    Args:
        config: of the model.
        arrangement: ``vqa``, or ``caption``, which leaves text encoder and fusion network behind.
        first: the index, in the file, of the first layer of the fusion network that runs.
    """
    text: MPlugTextConfig = config.text_config
    fusion, unused = _fusion(text, first)
    questions = {**below("text_encoder", TEXT, "text_encoder"), **fusion}
    moved = {
        **below("visual_encoder.visual", IMAGE, "vision_model"),
        **below("text_decoder.bert", DECODER, "text_decoder.bert"),
        **below("text_decoder.cls.predictions", HEAD, "text_decoder.cls.predictions"),
        **(BRIDGE if config.vision_config.hidden_size != text.hidden_size else {}),
        **(questions if arrangement == VQA else {}),
    }
    dropped = {
        **{f"{part}.{NUMBERS}": "position numbers" for part in ("text_encoder", "fusion_encoder", "text_decoder.bert")},
        "visual_encoder.visual.proj": "projection of CLIP's image encoder",
        **dict.fromkeys(CLIP_TEXT, "CLIP's text encoder"),
        **unused,
        **({} if arrangement == VQA else dict.fromkeys(questions, "text encoder and fusion network")),
        **TRAINING,
    }
    return Layout(moved, dropped)


def _fusion(text: MPlugTextConfig, first: int) -> tuple[dict[str, str], dict[str, str]]:
    """Rows of the fusion network: layers that run, numbered from 0, and what is built and never called."""
    moved: dict[str, str] = {}
    unused = dict.fromkeys(
        below("fusion_encoder", EMBEDDINGS, ""), "embeddings of the fusion network, which are not used"
    )
    for r in range(text.fusion_layers):
        source, target = f"fusion_encoder.encoder.layer.{first + r}", f"fusion_encoder.encoder.layer.{r}"
        moved |= below(source, {**SELF, **REST}, target)
        if r in text.connected_layers:
            what = "cross-attention of connected layers, which is not used"
            unused |= dict.fromkeys(below(source, CROSS, target), what)
        else:
            moved |= below(source, CROSS, target)
    for index in range(first):
        source = f"fusion_encoder.encoder.layer.{index}"
        what = "first layers of the fusion network, which do not run"
        unused |= dict.fromkeys(below(source, {**SELF, **CROSS, **REST}, ""), what)
    return moved, unused


def fine_tuned_names(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], bool]:
    """Entries under the names of a fine-tuned file, and whether the file is one of ModelScope's.

    Pre-training files have a level more (``text_encoder.bert.``, and ``fusion_encoder.fusion.`` or
    ``fusion_encoder.bert.``), ModelScope's a prefix (``model.``), and re-saved ones an axis more in the position
    embeddings.

    Raises:
        UserError: if two entries would have the same name.
    """
    modelscope = bool(weights) and all(name.startswith(MODELSCOPE) for name in weights)
    renamed: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        new = fine_tuned_name(name.removeprefix(MODELSCOPE) if modelscope else name)
        if new in renamed:
            raise UserError(f"CHECKPOINT: holds {new} twice, as {name} and under another name; keep one of them")
        renamed[new] = value
    positions = "visual_encoder.visual.positional_embedding"
    if positions in renamed and renamed[positions].dim() == 3 and renamed[positions].shape[0] == 1:
        renamed[positions] = renamed[positions][0]
    return renamed, modelscope


def fine_tuned_name(name: str) -> str:
    """One name as a fine-tuned file has it."""
    for long, short in (
        ("text_encoder.bert.", "text_encoder."),
        ("fusion_encoder.fusion.", "fusion_encoder."),
        ("fusion_encoder.bert.", "fusion_encoder."),
    ):
        if name.startswith(long):
            return short + name.removeprefix(long)
    return name


def packed(names: Iterable[str]) -> dict[str, list[str]]:
    """Entry of the table -> entries of the model that it becomes: one, or query, key and value."""
    parts: dict[str, list[str]] = {}
    for name in names:
        whole = name
        for projection in ("q_proj", "k_proj", "v_proj"):
            whole = whole.replace(f".self_attn.{projection}.", ".self_attn.in_proj.")
        parts.setdefault(whole, []).append(name)
    order = ("q_proj", "k_proj", "v_proj")
    return {
        whole: sorted(found, key=lambda name: [projection in name for projection in order], reverse=True)
        for whole, found in parts.items()
    }
