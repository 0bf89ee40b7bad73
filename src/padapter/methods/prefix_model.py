"""Prefix tuning for a decoder with cross-attention, through its key/value cache.

PEFT hands the prefix over as ``past_key_values`` of the wrapped model. For BLIP that fails three times over: the whole
model takes no cache; the decoder, when it computes a loss, does not separate the self- from the cross-attention cache
and would mix the prefix into the image; and text positions are shifted by the length of the prefix. Here the prefix
enters at one place, the call of the decoder's stack, and so is the same for loss, generation and ranking:

- an empty cache (or none) gets the prefix as its first entries, in the self-attention half only;
- the attention mask grows by as many ones on the left;
- text positions are those of the unadapted model, which may count them in its own way (``count_positions``). A decoder
  that is told no positions and counts them from its cache (BART, TrOCR) has the prefix taken off again where it looks
  them up; one that knows distances only (T5, Pix2Struct) needs nothing: those between its tokens stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from padapter.errors import UserError


@dataclass(frozen=True)
class Stack:
    """Where a prefix enters.

    Attributes:
        path: of the module whose call takes ids, mask and cache.
        positions: how it knows positions: it is told them as ``position_ids``, it looks them up by a count of what its
            cache holds in its module ``embed_positions``, or it knows distances between tokens only.
    """

    path: str
    positions: Literal["told", "looked up", "distances"]


#: By ``config.model_type`` and that of the text configuration.
STACKS: Mapping[tuple[str, str], Stack] = MappingProxyType(
    {
        ("blip", "blip_text_model"): Stack("text_decoder.bert", "told"),
        ("mplug", "mplug_text_model"): Stack("text_decoder.bert", "told"),
        ("blip-2", "t5"): Stack("language_model.decoder", "distances"),
        ("instructblip", "t5"): Stack("language_model.decoder", "distances"),
        ("florence2", "bart"): Stack("model.language_model.decoder", "looked up"),
        ("pix2struct", "pix2struct_text_model"): Stack("decoder", "distances"),
        ("vision-encoder-decoder", "gpt2"): Stack("decoder.transformer", "told"),
        ("vision-encoder-decoder", "trocr"): Stack("decoder.model.decoder", "looked up"),
    }
)


def stack_of(config: Any) -> Stack:
    """Where a prefix enters a model.

    Args:
        config: of the model.

    Raises:
        UserError: if that is not known.
    """
    kind, text = str(config.model_type), str(getattr(config.get_text_config(), "model_type", ""))
    if (kind, text) not in STACKS:
        known = ", ".join(dict.fromkeys(f"{kind} with {text}" if "-" in kind else kind for kind, text in STACKS))
        raise UserError(
            f"method 'prefix' does not know model type '{kind}' with text of type '{text}'. Known: {known}."
        )
    return STACKS[kind, text]


def prefix_shape(config: Any) -> dict[str, int]:
    """What a prefix has to fit: layers of the decoder, heads, and the width of all of them together.

    Args:
        config: of the model.

    Returns:
        ``num_layers``, ``token_dim`` and ``num_attention_heads`` of PEFT's configuration.
    """
    text = config.get_text_config()

    def first(*names: str) -> int:
        """Of an encoder-decoder, ``num_hidden_layers`` and ``num_attention_heads`` are the encoder's."""
        return next(int(value) for name in names if (value := getattr(text, name, None)) is not None)

    heads = first("decoder_attention_heads", "num_attention_heads")
    head = getattr(text, "d_kv", None)  # T5's heads need not share out its width
    return {
        "num_layers": first("decoder_layers", "num_decoder_layers", "num_hidden_layers"),
        "token_dim": int(text.hidden_size) if head is None else heads * int(head),
        "num_attention_heads": heads,
    }


class PrefixModel(PeftModel):
    """A model whose decoder reads a learned prefix; parameters, saving and loading are PEFT's.

    Args:
        model: The base model; its type must be in ``STACKS``.
        peft_config: A ``PrefixTuningConfig`` without projection.
        adapter_name: As in PEFT.
        **kwargs: As in ``PeftModel``.

    Raises:
        UserError: If the model's family is unknown or the prefix has another shape than its keys and values.
    """

    def __init__(self, model: Any, peft_config: Any, adapter_name: str = "default", **kwargs: Any) -> None:
        place = stack_of(model.config)
        _check_shape(model.config, peft_config)
        super().__init__(model, peft_config, adapter_name, **kwargs)
        # Explicit, since PEFT freezes only child modules, not parameters directly on the model.
        model.requires_grad_(False)
        self._positions = place.positions
        stack = model.get_submodule(place.path)
        self._prefix_hooks = [
            stack.register_forward_pre_hook(self._add_prefix, with_kwargs=True),
            stack.register_forward_hook(_drop_cache, with_kwargs=True),
        ]
        if place.positions == "looked up":
            counting = stack.get_submodule("embed_positions")
            self._prefix_hooks.append(counting.register_forward_pre_hook(self._look_up_behind, with_kwargs=True))

    def unload(self) -> Any:
        """Take the prefix away and return the base model."""
        for hook in self._prefix_hooks:
            hook.remove()
        return self.base_model

    def _add_prefix(
        self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Forward pre-hook of the decoder stack."""
        if self._adapters_disabled:
            return None
        if any(getattr(m, "gradient_checkpointing", False) and m.training for m in stack.modules()):
            raise UserError("method 'prefix' does not work with gradient checkpointing; turn it off.")
        ids = args[0] if args else kwargs.get("input_ids")
        tokens = kwargs["inputs_embeds"] if ids is None else ids
        batch, length = tokens.shape[:2]
        virtual = self.active_peft_config.num_virtual_tokens
        cache = self._prefixed(kwargs.get("past_key_values"), batch)
        seen = cache.get_seq_length() - virtual
        kwargs = {**kwargs, "past_key_values": cache}
        mask = kwargs.get("attention_mask")
        if mask is not None:
            # (batch, tokens) of ones and zeros, or (batch, 1, tokens, keys), boolean or added to the scores
            attend = 1 if mask.dim() == 2 or mask.dtype == torch.bool else 0
            kwargs["attention_mask"] = nn.functional.pad(mask, (virtual, 0), value=attend)
        if self._positions == "told" and kwargs.get("position_ids") is None:
            count: Any = getattr(stack, "count_positions", _counted_on)
            kwargs["position_ids"] = count(mask, length, seen, tokens.device).expand(batch, -1)
        return args, kwargs

    def _look_up_behind(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Forward pre-hook of a table of positions: what was counted has the prefix in it."""
        if self._adapters_disabled:
            return None
        virtual = self.active_peft_config.num_virtual_tokens
        counted = {name: kwargs[name] for name in ("position_ids", "past_key_values_length") if name in kwargs}
        return args, {**kwargs, **{name: value - virtual for name, value in counted.items() if value is not None}}

    def _prefixed(self, cache: Any, batch: int) -> EncoderDecoderCache:
        """Return ``cache`` as a cache for self- and cross-attention that begins with the prefix.

        Args:
            cache: ``None``, an empty cache, or one this model has filled (and that holds the prefix already).
            batch: Number of rows.

        Returns:
            The cache; a given one is filled in place.
        """
        if cache is None:
            cache = DynamicCache()
        if not isinstance(cache, EncoderDecoderCache):
            cache = EncoderDecoderCache(cache, DynamicCache())
        if cache.get_seq_length() == 0:
            prompt = self.get_prompt(batch)
            for index, layer in enumerate(prompt.layers):
                cache.self_attention_cache.update(layer.keys, layer.values, index)
        return cache


def _counted_on(mask: Any, length: int, past: int, device: torch.device) -> torch.Tensor:
    """Positions (1, length) behind ``past`` tokens, whatever the mask says."""
    return torch.arange(past, past + length, device=device)[None]


def _drop_cache(stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook: who asked for no cache shall not get the one that carried the prefix."""
    if kwargs.get("use_cache") is False:
        output.past_key_values = None
    return output


def _check_shape(model: Any, config: Any) -> None:
    if config.prefix_projection:
        raise UserError("method 'prefix' does not support prefix_projection; train without it.")
    for field, expected in prefix_shape(model).items():
        if getattr(config, field) != expected:
            raise UserError(
                f"the prefix does not fit the model: {field} is {getattr(config, field)} in the adapter and {expected} "
                "in the model's text decoder."
            )
