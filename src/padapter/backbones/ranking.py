"""Log-likelihood of fixed continuations after one cached prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from padapter.backbones.sequences import IGNORE, pad_right

CHUNK = 64
"""Candidates scored in one forward pass."""


def candidate_tensors(candidates: Sequence[Sequence[int]], end: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the decoder reads and what it must say next, both (C, T).

    Args:
        candidates: C token sequences, none empty.
        end: Id of the end token.
        pad: Id that fills up the inputs.

    Returns:
        Inputs y_1 .. y_n and labels y_2 .. y_n, end, padded with -100 (y_1 is judged by the prompt's last logits).
    """
    inputs = pad_right(candidates, pad)
    labels = pad_right([[*tokens[1:], end] for tokens in candidates], IGNORE)
    return inputs, labels


def first_choices(first: torch.Tensor, k: int | None) -> torch.Tensor:
    """Return the indices, in list order, of the k candidates with the likeliest first token.

    Args:
        first: (C,) log-probability of each candidate's first token.
        k: How many to keep; ``None`` or more than C keeps all.

    Returns:
        Sorted indices; among equals the earlier candidate is kept.
    """
    order = torch.sort(first, descending=True, stable=True).indices
    return torch.sort(order[:k]).values


def continuation_log_probs(
    decoder: Any,
    cache: EncoderDecoderCache,
    row: int,
    mask: torch.Tensor,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    encoder_states: torch.Tensor,
) -> torch.Tensor:
    """Sum the log-probabilities of ``labels`` after the cached prompt of one row.

    Args:
        decoder: Decoder with a language-model head and cross-attention.
        cache: What the prompts of all rows left behind; not changed.
        row: The row whose prompt is continued.
        mask: (1, P) attention mask of that (left-padded) prompt.
        inputs: (C, T) continuation tokens.
        labels: (C, T) tokens to predict, -100 where none.
        encoder_states: (1, N, d) image states of the row.

    Returns:
        (C,) log-probabilities.
    """
    count, length = inputs.shape
    positions = mask.sum() + torch.arange(length, device=inputs.device)
    logits = decoder(
        input_ids=inputs,
        attention_mask=torch.cat([mask.expand(count, -1), mask.new_ones(count, length)], dim=1),
        position_ids=positions.expand(count, -1),
        encoder_hidden_states=encoder_states.expand(count, -1, -1),
        past_key_values=_one_row(cache, row, count),
        use_cache=True,
    ).logits
    log_probs = logits.float().log_softmax(dim=-1)  # (C, T, V)
    chosen = log_probs.gather(2, labels.clamp_min(0).unsqueeze(2)).squeeze(2)  # (C, T)
    return chosen.masked_fill(labels == IGNORE, 0.0).sum(dim=1)


def _one_row(cache: EncoderDecoderCache, row: int, count: int) -> EncoderDecoderCache:
    """A fresh cache that repeats one row ``count`` times; image keys and values are views, not copies."""

    def repeat(source: DynamicCache) -> DynamicCache:
        target = DynamicCache()
        for layer in source.layers:
            copied = DynamicLayer()
            copied.lazy_initialization(layer.keys, layer.values)
            copied.keys = layer.keys[row : row + 1].expand(count, -1, -1, -1)
            copied.values = layer.values[row : row + 1].expand(count, -1, -1, -1)
            target.layers.append(copied)
        return target

    return EncoderDecoderCache(repeat(cache.self_attention_cache), repeat(cache.cross_attention_cache))
