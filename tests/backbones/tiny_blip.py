"""A BLIP that is built in a moment: 2 layers x 32, 16 px images, a WordPiece vocabulary of a few dozen words."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from padapter.architectures.blip import use_attention
from padapter.backbones import BlipBackbone

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "what",
    "color",
    "colour",
    "is",
    "the",
    "a",
    "an",
    "red",
    "blue",
    "green",
    "yellow",
    "?",
    ".",
    ",",
    "yes",
    "no",
    "dog",
    "cat",
    "##s",
    "one",
    "two",
    "three",
    "many",
    "how",
    "picture",
    "of",
    "in",
    "on",
    "left",
    "right",
    "small",
    "large",
    "image",
    "does",
    "describe",
    "correct",
    "that",
    "it",
    "there",
]


def make_image(seed: int, side: int = 20) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_processor() -> BlipProcessor:
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return BlipProcessor(image_processor=BlipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer=tokenizer)


def make_model(*, seed: int = 0, layers: int = 2, label_smoothing: float = 0.1, dropout: float = 0.0):
    vocabulary = len(WORDS) + 2
    config = BlipConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 32,
            "encoder_hidden_size": 24,
            "intermediate_size": 64,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "max_position_embeddings": 40,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
            "pad_token_id": 0,
            "label_smoothing": label_smoothing,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 16,
            "patch_size": 8,
            "layer_norm_eps": 1e-6,
        },
    )
    torch.manual_seed(seed)
    model = BlipForConditionalGeneration(config)
    # The default initialisation (std 0.02) makes every output nearly the same; spread the outputs out.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
            elif "LayerNorm" not in name and "layer" not in name:
                parameter.normal_(std=0.2)
    return model.eval()


def make_backbone(**options) -> BlipBackbone:
    model = make_model(**options)
    use_attention(model, "sdpa")  # as the backbone does when it loads a model
    return BlipBackbone(model, make_processor(), "tiny-blip")


def save_tiny(directory, **options):
    """Write a tiny model with its processor and return the folder as a string."""
    make_model(**options).save_pretrained(str(directory))
    make_processor().save_pretrained(str(directory))
    return str(directory)
