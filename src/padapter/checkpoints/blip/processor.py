"""Tokenizer and image processor of BLIP, made and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from padapter.checkpoints.vocabulary import check_bert_ids
from padapter.errors import UserError

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def add_tokens(tokenizer: Any, words: int, positions: int) -> Any:
    """Add ``[DEC]`` and ``[ENC]`` behind BERT's vocabulary, in the official order, and check what comes of it.

    Args:
        tokenizer: over BERT's vocabulary.
        words: rows of the model's word embeddings.
        positions: length of its longest text in tokens.

    Raises:
        UserError: if the vocabulary is not the one the model was trained with.
    """
    before = len(tokenizer)
    if before + 2 != words:
        raise UserError(
            f"--vocab: {before} tokens, with [DEC] and [ENC] {before + 2}, but CHECKPOINT embeds {words}; give the "
            "vocab.txt it was trained with"
        )
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    wrong = wrong_ids(tokenizer, words)
    if wrong:
        raise UserError(f"--vocab: not the vocabulary of BLIP: {'; '.join(wrong)}")
    tokenizer.model_max_length = positions
    return tokenizer


def wrong_ids(tokenizer: Any, words: int) -> list[str]:
    """What is wrong with the tokenizer of a model that embeds ``words`` tokens; with BERT's own size, in detail."""
    wrong = [] if len(tokenizer) == words else [f"{len(tokenizer)} tokens instead of {words}"]
    wanted = {"[DEC]": words - 2, "[ENC]": words - 1}
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in wanted}
    wrong += [
        f"{token} is {found[token]} instead of {number}" for token, number in wanted.items() if found[token] != number
    ]
    if tokenizer.bos_token != "[DEC]":
        wrong.append(f"texts start with {tokenizer.bos_token} instead of [DEC]")
    return wrong + check_bert_ids(tokenizer, words - 2)


def token_ids(tokenizer: Any) -> dict[str, int]:
    """Ids of the tokens that the model's configuration names."""
    return {"bos": tokenizer.bos_token_id, "sep": tokenizer.sep_token_id, "pad": tokenizer.pad_token_id}


def make_processor(tokenizer: Any, side: int) -> Any:
    """Bicubic resize to a square, CLIP's normalisation, and the tokenizer."""
    images = BlipImageProcessorPil(
        size={"height": side, "width": side}, resample=3, image_mean=list(IMAGE_MEAN), image_std=list(IMAGE_STD)
    )
    return BlipProcessor(image_processor=images, tokenizer=tokenizer)


def check_processor(folder: Path, words: int, side: int) -> None:
    """Read tokenizer and image processor back, as `padapter train` does.

    Raises:
        RuntimeError: if they are not what was written.
    """
    wrong = wrong_ids(AutoTokenizer.from_pretrained(folder), words)
    size = BlipImageProcessorPil.from_pretrained(folder).size
    if (size["height"], size["width"]) != (side, side):
        wrong.append(f"pictures of {size}")
    if wrong:
        raise RuntimeError(f"what was written does not read back: {'; '.join(wrong)}")
