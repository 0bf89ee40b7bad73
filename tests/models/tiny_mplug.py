"""Tiny mPLUG models made of random checkpoints in the official layout, and their sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from mplug_official import Sizes, official_state

from padapter.checkpoints.mplug.model import translate
from padapter.checkpoints.writing import build
from padapter.models.mplug import (
    MPlugConfig,
    MPlugForConditionalGeneration,
    MPlugForQuestionAnswering,
    MPlugProcessor,
    MPlugTokenizer,
)
from padapter.models.mplug.processing import image_processor

PAD, START, END = 0, 2, 3
WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "color", "is", "the", "a", "red", "blue", "green", "?", ".",
    ",", "yes", "no", "dog", "cat", "##s", "one", "two", "how", "many",
]  # fmt: skip
MODELS = {"vqa": MPlugForQuestionAnswering, "caption": MPlugForConditionalGeneration}


def config_of(sizes: Sizes, *, dropout: float = 0.0) -> MPlugConfig:
    return MPlugConfig(
        vision_config={
            "hidden_size": sizes.vision_width,
            "intermediate_size": sizes.vision_hidden,
            "num_hidden_layers": sizes.vision_layers,
            "num_attention_heads": sizes.heads,
            "image_size": sizes.grid * sizes.patch,
            "patch_size": sizes.patch,
            "attention_dropout": dropout,
        },
        text_config={
            "vocab_size": sizes.words,
            "hidden_size": sizes.width,
            "intermediate_size": sizes.hidden,
            "num_hidden_layers": sizes.decoder_layers,
            "text_encoder_layers": sizes.text_layers,
            "fusion_layers": sizes.fusion_layers,
            "stride_layer": sizes.stride,
            "num_attention_heads": sizes.heads,
            "max_position_embeddings": sizes.positions,
            "type_vocab_size": sizes.type_words,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "pad_token_id": PAD,
            "bos_token_id": START,
            "eos_token_id": END,
        },
    )


def model_of(
    state: dict[str, torch.Tensor], sizes: Sizes, arrangement: str = "vqa", *, attention: str = "sdpa", **options
):
    """Our model with the weights of an official state, in their precision."""
    config = config_of(sizes, **options)
    first = sizes.fusion_built - sizes.fusion_layers
    translated, _ = translate(state, config, first=first, arrangement=arrangement, file=Path("random.pth"))
    model = build(MODELS[arrangement], config, {name: value.clone() for name, value in translated.items()})
    model.set_attn_implementation(attention)
    return model


def tiny(arrangement: str = "vqa", *, seed: int = 0, attention: str = "sdpa", dropout: float = 0.0, **sizes):
    """(model, official state, sizes)."""
    chosen = replace(Sizes(), **sizes)
    state = official_state(chosen, seed=seed)
    return model_of(state, chosen, arrangement, attention=attention, dropout=dropout), state, chosen


def make_processor(*, size: int = 8, trailing_sep: bool = False) -> MPlugProcessor:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    return MPlugProcessor(image_processor(size), MPlugTokenizer(vocab=vocabulary, trailing_sep=trailing_sep))


def talkative(state: dict[str, torch.Tensor], seed: int = 0, *, ending: float = 0.0) -> dict[str, torch.Tensor]:
    """The same weights with a decoder that says different things at different places, and likes to end or not."""
    state = dict(state)
    generator = torch.Generator().manual_seed(seed)
    for name in ("text_decoder.bert.embeddings.position_embeddings.weight", "text_decoder.cls.predictions.bias"):
        state[name] = 2 * torch.randn(state[name].shape, generator=generator, dtype=torch.float64)
    state["text_decoder.cls.predictions.bias"][END] += ending
    state["text_decoder.cls.predictions.decoder.bias"] = state["text_decoder.cls.predictions.bias"]
    return state


def pictures(sizes: Sizes, count: int, seed: int = 1) -> torch.Tensor:
    side = sizes.grid * sizes.patch
    return torch.randn(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def texts(sizes: Sizes, lengths: list[int], seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Random texts (B, L) that start with the start token, padded on the right, and their masks."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(4, sizes.words, (length,), generator=generator)
    ids[:, 0] = START
    return ids, (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
