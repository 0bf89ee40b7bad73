"""Folders of tiny mPLUG models with random weights, as `save_pretrained` and `padapter convert mplug` write them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from padapter.models.mplug import (
    MPlugConfig,
    MPlugForConditionalGeneration,
    MPlugForQuestionAnswering,
    MPlugProcessor,
    MPlugTokenizer,
)
from padapter.models.mplug.processing import image_processor

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tiny_config(words: int, *, size: int = 32, dropout: float = 0.0, **text) -> MPlugConfig:
    """Width 32, four heads, four patches along each side; layer 1 of the fusion network is connected."""
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.25,  # with the default, 0.02, inputs hardly show in outputs
    }
    return MPlugConfig(
        vision_config={**tower, "image_size": size, "patch_size": size // 4, "attention_dropout": dropout},
        text_config={
            **tower,
            "vocab_size": words,
            "text_encoder_layers": 1,
            "fusion_layers": 2,
            "stride_layer": 1,
            "max_position_embeddings": 48,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
            **text,
        },
        initializer_range=0.25,
    )


def save_tiny_mplug(folder, words: Sequence[str], *, arrangement: str = "vqa", seed: int = 0, **config) -> str:
    """Write a tiny model with its processor and return the folder as a string.

    Args:
        folder: to be written.
        words: of the vocabulary, after the special tokens.
        arrangement: "vqa", the whole model, or "caption", without what reads questions.
        seed: of the weights.
        **config: as for `tiny_config`.
    """
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *words))}
    kind = MPlugForQuestionAnswering if arrangement == "vqa" else MPlugForConditionalGeneration
    torch.manual_seed(seed)
    made = tiny_config(len(vocabulary), **config)
    kind(made).save_pretrained(str(folder))
    MPlugProcessor(image_processor(made.vision_config.image_size), MPlugTokenizer(vocab=vocabulary)).save_pretrained(
        str(folder)
    )
    return str(folder)
