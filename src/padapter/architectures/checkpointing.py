"""Gradient checkpointing of adapted models, where PyTorch, PEFT and transformers together get it wrong.

With gradient checkpointing PEFT makes the output of the word embedding a leaf that requires a gradient, so that
gradients reach adapters inside the checkpointed layers. Three things go wrong, whatever the PEFT method:

* Some models then write to that leaf (``embeddings += positions`` in BLIP and GIT, image features put among the words
  in Kosmos-2), which autograd refuses.
* Towers whose embedding transformers does not know (the image encoder of Qwen3-VL), or none at all where checkpointing
  is turned on after PEFT, get no such leaf. Reentrant checkpointing then gives their adapters no gradient.
* A layer that is handed its cache by position (GIT) fills it a second time when it is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def support_checkpointing(model: nn.Module) -> None:
    """Let a model with frozen weights and adapters train with gradient checkpointing of either kind.

    Hooks on the embeddings and on the layers that can be checkpointed; without checkpointing they change nothing,
    with it no number. Calling it again changes nothing.

    Args:
        model: any model; may be adapted already.
    """
    for embedding in _input_embeddings(model):
        if copy_leaf not in embedding._forward_hooks.values():
            embedding.register_forward_pre_hook(copy_last)
            embedding.register_forward_hook(copy_leaf)
    for module in model.modules():
        hooked = reach_adapters in module._forward_pre_hooks.values()
        if isinstance(module, GradientCheckpointingLayer) and not hooked:
            module.register_forward_pre_hook(reach_adapters, with_kwargs=True)


def forget_checkpointing(model: nn.Module) -> None:
    """Undo `support_checkpointing`."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if hook in (copy_last, copy_leaf, reach_adapters)]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


# The hooks are at module level, so that pickle finds them by name.
def copy_leaf(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
    """Forward hook of an embedding: hand on a leaf that requires a gradient as a copy, to be written to."""
    is_leaf = torch.is_tensor(output) and output.requires_grad and output.is_leaf
    return output.clone() if is_leaf else None


def copy_last(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook of an embedding: `copy_leaf` must come after the hook that makes its output a leaf."""
    hooks = module._forward_hooks
    mine = [key for key, hook in hooks.items() if hook is copy_leaf]
    if mine and next(reversed(hooks)) != mine[0]:
        hooks[mine[0]] = hooks.pop(mine[0])


def reach_adapters(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
    """Forward pre-hook of a layer that is about to be checkpointed.

    Empty caches are left out, as transformers does with those given by name. If nothing that enters the layer requires
    a gradient but something inside does, the states do from here on: reentrant checkpointing looks at nothing else.
    """
    if not (layer.gradient_checkpointing and layer.training and torch.is_grad_enabled()):
        return None
    args = tuple(None if isinstance(value, Cache) and value.get_seq_length() == 0 else value for value in args)
    leads = any(torch.is_tensor(value) and value.requires_grad for value in args)
    if args and not leads and _is_reentrant(layer) and _trains(layer):
        args = (args[0].detach().requires_grad_(), *args[1:])
    return args, kwargs


def _is_reentrant(layer: Any) -> bool:
    options: dict[str, Any] = getattr(layer._gradient_checkpointing_func, "keywords", {})
    return bool(options.get("use_reentrant", True))


def _trains(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def _input_embeddings(model: nn.Module) -> Iterator[nn.Module]:
    """The embeddings of a model and of the models inside it: those that transformers makes give leaves."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            try:
                embedding = module.get_input_embeddings()
            except NotImplementedError:
                continue
            if isinstance(embedding, nn.Module):
                yield embedding
