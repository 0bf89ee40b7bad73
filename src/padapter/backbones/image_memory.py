"""What a decoder remembers: keys and values of images, computed once per image, and of prompts, read in place."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache


class ImageLayer(DynamicLayer):
    """Keys and values of images in one layer; all beams of a row look at the same one."""

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Change nothing: beams move within their row only."""


def read_images(decoder: Any, states: torch.Tensor) -> DynamicCache:
    """Compute what the cross-attention of a decoder remembers of images; it does not depend on the text.

    Args:
        decoder: BLIP's or mPLUG's, possibly with adapters injected.
        states: (I, N, d) image states, or whatever else it attends to.

    Returns:
        Keys and values (I, H, N, dh) of all layers.
    """
    memory = DynamicCache()
    for layer in decoder.bert.encoder.layer:
        attention = layer.crossattention.self
        key, value = (
            # Contiguous, or every step of decoding would copy them for its products.
            part(states).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2).contiguous()
            for part in (attention.key, attention.value)
        )
        memory.layers.append(_filled(ImageLayer, key, value))
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
        target.layers.append(_filled(kind, layer.keys[rows], layer.values[rows]))
    return target


def _filled(kind: type[DynamicLayer], keys: torch.Tensor, values: torch.Tensor) -> DynamicLayer:
    """A layer that holds just these tensors; ``update`` of an empty one would copy them."""
    layer = kind()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer
