"""Sizes of a BLIP model, read off the shapes of its weights, and the configuration that belongs to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import BlipConfig

from padapter.architectures.positions import grid_side
from padapter.checkpoints.layout import Shape, common_size, layer_count
from padapter.errors import UserError
from padapter.options.fields import refuse

HEAD_WIDTH = 64
#: Layers of the published towers by their width. A file that lacks its last layer would otherwise be a smaller model.
VISION_LAYERS, TEXT_LAYERS = {768: 12, 1024: 24}, {768: 12}


@dataclass(frozen=True)
class Sizes:
    """What the shapes of a file say: of each tower width, hidden width of its MLP and layers; patches and words."""

    vision: tuple[int, int, int]
    text: tuple[int, int, int]
    patch: int
    grid: int
    words: int
    positions: int


def sizes_of(shapes: Mapping[str, Shape]) -> Sizes:
    """Read sizes off the shapes of a file, each as most entries have it; what is not there is as in BLIP base.

    Raises:
        UserError: if a width is no multiple of 64, the width of a head in all published models.
    """
    block, layer = "visual_encoder.blocks.{i}", "text_decoder.bert.encoder.layer.{i}"
    vision = common_size(shapes, f"{block}.norm1.weight", 0, 768)
    text = common_size(shapes, f"{layer}.attention.output.LayerNorm.weight", 0, 768)
    words = "text_decoder.bert.embeddings.{which}_embeddings.weight"
    for tower, width in (("visual_encoder", vision), ("text_decoder", text)):
        if width % HEAD_WIDTH:
            raise UserError(
                f"CHECKPOINT: {tower} is {width} wide, which is no multiple of {HEAD_WIDTH}, the width of a head in "
                "all published BLIP models; so the number of its heads cannot be told."
            )
    patch = max(1, common_size(shapes, "visual_encoder.patch_embed.proj.weight", -1, 16))
    stored = grid_side(common_size(shapes, "visual_encoder.pos_embed", 1, 197))
    return Sizes(
        vision=(
            vision,
            common_size(shapes, f"{block}.mlp.fc1.weight", 0, 3072),
            VISION_LAYERS.get(vision) or layer_count(shapes, "visual_encoder.blocks"),
        ),
        text=(
            text,
            common_size(shapes, f"{layer}.intermediate.dense.weight", 0, 3072),
            TEXT_LAYERS.get(text) or layer_count(shapes, "text_decoder.bert.encoder.layer"),
        ),
        patch=patch,
        grid=stored or 14,  # of a table that is no square, which is reported with all else that is wrong
        words=common_size(shapes, words.replace("{which}", "word"), 0, 30524),
        positions=common_size(shapes, words.replace("{which}", "position"), 0, 512),
    )


def make_config(sizes: Sizes, *, image_size: int, ids: Mapping[str, int], tied: bool = True) -> BlipConfig:
    """The configuration of a published BLIP model of these sizes, every value that transformers would guess set.

    Args:
        sizes: of its towers.
        image_size: edge of its pictures in pixels.
        ids: ids of the start, end and padding tokens (``bos``, ``sep``, ``pad``).
        tied: whether the output projection is the table of word embeddings.
    """
    vision, text = (
        dict(zip(("hidden_size", "intermediate_size", "num_hidden_layers"), tower, strict=True))
        for tower in (sizes.vision, sizes.text)
    )
    return BlipConfig(
        vision_config={
            **vision,
            "num_attention_heads": sizes.vision[0] // HEAD_WIDTH,
            "image_size": image_size,
            "patch_size": sizes.patch,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
        },
        text_config={
            **text,
            "encoder_hidden_size": sizes.vision[0],
            "num_attention_heads": sizes.text[0] // HEAD_WIDTH,
            "vocab_size": sizes.words,
            "max_position_embeddings": sizes.positions,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "label_smoothing": 0.1,
            "bos_token_id": ids["bos"],
            "eos_token_id": ids["sep"],
            "sep_token_id": ids["sep"],
            "pad_token_id": ids["pad"],
            "is_decoder": True,
            "tie_word_embeddings": tied,
        },
        label_smoothing=0.1,
        tie_word_embeddings=tied,
    )


def checked_image_size(asked: int | None, sizes: Sizes) -> int:
    """The edge of the model's pictures: what was asked for, or the file's own.

    Raises:
        UserError: if it is no multiple of the patches.
    """
    side = sizes.grid * sizes.patch if asked is None else asked
    if side % sizes.patch:
        raise refuse("--image-size", f"{side} is no multiple of the model's patches of {sizes.patch} pixels")
    return side
