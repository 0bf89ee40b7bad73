"""Models to measure: random weights, made from a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor

from padapter.models.vocabulary import SPECIAL, build_tokenizer


def blip_config(
    layers: int = 12, width: int = 768, side: int = 224, words: int = 30524, towers: int | None = None
) -> BlipConfig:
    """BLIP base, or a smaller one.

    Args:
        layers: of the text decoder.
        width: of both towers; heads are 64 wide, or 8 where that does not fit.
        side: of a picture, in pixels; patches have 16 x 16.
        words: in the vocabulary.
        towers: layers of the image tower; default: as many as the decoder has.
    """
    shape: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // (64 if width % 64 == 0 else 8),
        "initializer_range": 0.02,  # the image tower's default, 1e-10, would make all image tokens equal
    }
    ids = {token: index for index, token in enumerate(SPECIAL)}
    text = {
        **shape,
        "num_hidden_layers": layers,
        "encoder_hidden_size": width,
        "vocab_size": words,
        "bos_token_id": ids["[DEC]"],
        "eos_token_id": ids["[SEP]"],
        "sep_token_id": ids["[SEP]"],
        "pad_token_id": ids["[PAD]"],
    }
    vision = {**shape, "num_hidden_layers": towers or layers, "image_size": side, "patch_size": 16}
    return BlipConfig(text_config=text, vision_config=vision, projection_dim=64, image_text_hidden_size=width)


def save_blip(folder: Path, config: BlipConfig, seed: int = 0) -> None:
    """A folder that ``load_backbone`` reads: random weights, the built-in tokenizer, the model's size of pictures."""
    import torch
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.manual_seed(seed)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    side = config.vision_config.image_size
    images = BlipImageProcessorPil(size={"height": side, "width": side})
    BlipProcessor(image_processor=images, tokenizer=build_tokenizer()).save_pretrained(folder)
