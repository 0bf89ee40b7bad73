"""What a model computes with, as a few hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

if TYPE_CHECKING:
    from padapter.backbones.base import Backbone

# Fields of configurations that say where something lies, who wrote it, or whether it was loaded or made here.
_NO_CONTENT = (
    "_name_or_path",
    "transformers_version",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "auto_mapping",
    "inference_mode",
)


def add_tensors(digest: Any, tensors: Mapping[str, Any]) -> None:
    """Feed names, types, shapes and values of a state dictionary to a hash, in the order of the names.

    Of a tensor on the meta device, whose values are elsewhere, only name, type and shape count.
    """
    for name, value in sorted(tensors.items()):
        if not isinstance(value, torch.Tensor):
            digest.update(f"{name} {value!r}".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if not value.is_meta:
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def backbone_digest(backbone: Backbone) -> str:
    """32 hexadecimal digits of all that decides what a loaded model answers: equal for equal content, wherever it lies.

    That is the weights, adapters included; the configurations of model, adapters and text generation; tokenizer and
    image preprocessing; the longest text.
    """
    model = backbone.model
    base = backbone.base_model
    generation = getattr(base, "generation_config", None)
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    about = {
        "class": f"{type(base).__module__}.{type(base).__qualname__}",
        "config": _content(base.config.to_dict()),
        "generation": _content(generation.to_dict()) if generation is not None else None,
        "adapters": {name: _content(config.to_dict()) for name, config in getattr(model, "peft_config", {}).items()},
        "active": sorted({name for layer in layers if not layer.disable_adapters for name in layer.active_adapters}),
        "max_length": backbone.max_length,
        "features": backbone.features is not None,
        "pictures": backbone.preprocessing(),
        "words": _words(backbone.processor),
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=_text).encode())
    add_tensors(digest, model.state_dict())
    return digest.hexdigest()[:32]


def _words(processor: Any) -> dict[str, Any]:
    tokenizer = getattr(processor, "tokenizer", None)
    fast = getattr(tokenizer, "backend_tokenizer", None)
    return {
        "words": hashlib.sha256(fast.to_str().encode()).hexdigest() if fast is not None else None,
        "vocabulary": sorted(tokenizer.get_vocab().items()) if tokenizer is not None and fast is None else None,
        "special": str(sorted(tokenizer.special_tokens_map.items())) if tokenizer is not None else None,
        "template": getattr(processor, "chat_template", None),
    }


def _content(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _NO_CONTENT}


def _text(value: Any) -> Any:
    """Sets have no order of their own."""
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)
