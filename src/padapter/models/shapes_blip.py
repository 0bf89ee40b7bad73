"""The built-in model: a BLIP of three million parameters that speaks about the shapes world."""

from __future__ import annotations

from typing import TYPE_CHECKING

from padapter.models.vocabulary import SPECIAL, build_tokenizer, vocabulary
from padapter.worlds.shapes.render import IMAGE_SIZE

if TYPE_CHECKING:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor

WIDTH = 160
HEADS = 5
LAYERS = 4
PATCH_SIZE = 8
MLP_WIDTH = 480
MAX_TEXT_LENGTH = 128


def build_config() -> BlipConfig:
    """The configuration of ``shapes-blip``: vision and text towers of 4 layers, 160 wide, 5 heads, 8-pixel patches."""
    from transformers import BlipConfig

    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": MLP_WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "hidden_act": "gelu",
        "initializer_range": 0.04,  # BlipVisionConfig's own default of 1e-10 leaves the tower at zero
    }
    ids = {token: i for i, token in enumerate(SPECIAL)}
    return BlipConfig(
        vision_config={**tower, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "layer_norm_eps": 1e-6},
        text_config={
            **tower,
            "encoder_hidden_size": WIDTH,
            "vocab_size": len(vocabulary()),
            "max_position_embeddings": MAX_TEXT_LENGTH,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "label_smoothing": 0.0,
            "layer_norm_eps": 1e-12,
            "bos_token_id": ids["[DEC]"],
            "eos_token_id": ids["[SEP]"],
            "sep_token_id": ids["[SEP]"],
            "pad_token_id": ids["[PAD]"],
            "is_decoder": True,
        },
        projection_dim=WIDTH,
        image_text_hidden_size=WIDTH,
    )


def build_model(seed: int = 0) -> BlipForConditionalGeneration:
    """``shapes-blip`` with random weights."""
    import torch
    from transformers import BlipForConditionalGeneration

    torch.manual_seed(seed)
    return BlipForConditionalGeneration(build_config())


def build_processor() -> BlipProcessor:
    """Its processor: resize to 64 x 64 (bicubic), CLIP normalisation, WordPiece."""
    from transformers import BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    images = BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return BlipProcessor(image_processor=images, tokenizer=build_tokenizer())
