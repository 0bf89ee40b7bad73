"""Gradient checkpointing for embeddings that add positions in place.

With gradient checkpointing PEFT makes the output of the word embedding a leaf that requires a gradient, so that
gradients reach adapters inside the checkpointed layers. The text embeddings of BLIP and GIT then add the positions to
that leaf in place (``embeddings += position_embeddings``), which autograd refuses, whatever the PEFT method.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_ADDS_IN_PLACE = frozenset({"BlipTextEmbeddings", "GitEmbeddings"})
_INPUTS_EMBEDS = 2  # its place among the positional arguments of their `forward`


def embed_out_of_place(model: nn.Module) -> None:
    """Let a model train with gradient checkpointing although its embeddings add positions in place.

    A forward pre-hook hands these embeddings a copy of the word vectors where those are a leaf that requires a
    gradient; the numbers stay the same, bit for bit. Calling it again, or on a model of another family, changes
    nothing.

    Args:
        model: any model; may be adapted already.
    """
    for module in model.modules():
        adds_in_place = any(cls.__name__ in _ADDS_IN_PLACE for cls in type(module).__mro__)
        if adds_in_place and copy_leaf not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(copy_leaf, with_kwargs=True)


def embed_in_place(model: nn.Module) -> None:
    """Undo `embed_out_of_place`."""
    for module in model.modules():
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is copy_leaf]:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


# At module level, so that pickle finds it by name.
def copy_leaf(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook of text embeddings: look the words up and give a leaf that requires a gradient as a copy."""
    if not torch.is_grad_enabled() or len(args) > _INPUTS_EMBEDS:
        return None
    words = kwargs.get("inputs_embeds")
    if words is None:
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            return None  # the module says what it lacks
        words = module.word_embeddings(ids)  # type: ignore[operator]
    if words.requires_grad and words.is_leaf:
        words = words.clone()
    # The ids stay: they say nothing more where there are word vectors.
    return args, {**kwargs, "inputs_embeds": words}
