"""What a decoder remembers: keys and values of images, computed once per image, and of prompts, read in place."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache


class ImageLayer(DynamicLayer):
    """Keys and values of images in one layer; all beams of a row look at the same one."""

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Change nothing: beams move within their row only."""


def read_images(decoder: Any, states: torch.Tensor, start: int) -> DynamicCache:
    """Let the cross-attention of a decoder read images.

    Args:
        decoder: Decoder with cross-attention.
        states: (I, N, d) image states.
        start: Any token: keys and values of images do not depend on the text, so a text of one token gives them.

    Returns:
        Keys and values (I, H, N, dh) of all layers.
    """
    tokens = torch.full((states.shape[0], 1), start, device=states.device)
    output = decoder(input_ids=tokens, encoder_hidden_states=states, use_cache=True, logits_to_keep=1)
    memory: DynamicCache = output.past_key_values.cross_attention_cache
    return memory


def before_reading(memory: DynamicCache, rows: torch.Tensor) -> EncoderDecoderCache:
    """Return the cache of texts that nobody has read yet, each beside its image.

    Args:
        memory: Keys and values of I images.
        rows: (B,) the image of each text; copied for rows that share one.
    """
    once = rows.tolist() == list(range(memory.layers[0].keys.shape[0]))
    return EncoderDecoderCache(DynamicCache(), _taken(memory, slice(None) if once else rows, ImageLayer))


def of_rows(cache: EncoderDecoderCache, rows: slice) -> EncoderDecoderCache:
    """Return a cache of some rows of another; views, so that what is added to it is not seen there.

    Args:
        cache: Of B rows.
        rows: Which.
    """
    return EncoderDecoderCache(
        _taken(cache.self_attention_cache, rows, DynamicLayer), _taken(cache.cross_attention_cache, rows, ImageLayer)
    )


def _taken(source: DynamicCache, rows: slice | torch.Tensor, kind: type[DynamicLayer]) -> DynamicCache:
    target = DynamicCache()
    for layer in source.layers:
        taken = kind()
        taken.lazy_initialization(layer.keys, layer.values)
        taken.keys, taken.values = layer.keys[rows], layer.values[rows]
        target.layers.append(taken)
    return target
