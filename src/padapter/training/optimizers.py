"""How AdamW computes a step: in one call where it can, whatever the checkpoint says that it goes on from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# Fields of an optimizer's groups that say how a step is computed, not what.
_WAYS = ("fused", "foreach")


def can_be_fused(module: nn.Module) -> bool:
    """Whether every trainable parameter is a whole piece of memory, in any order of its dimensions.

    The fused step on processors takes that for granted (torch 2.13): of a parameter that is some columns of a larger
    tensor, it would update what lies behind the first ones, and write past the end.

    Args:
        module: what is trained.
    """
    # An empty tensor like another one takes over its strides only if they leave no gaps.
    return all(
        torch.empty_like(value, device="meta").stride() == value.stride()
        for value in module.parameters()
        if value.requires_grad
    )


def go_on_its_own_way(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer that loads a state compute its steps as it was made to, not as the one that was saved.

    A state brings its groups' fields along, and with them the way of computing: the optimizer would announce the one to
    a gradient scaler and follow the other, which torch refuses in the middle of a step.

    Args:
        optimizer: any.
    """
    optimizer.register_load_state_dict_pre_hook(_with_own_ways)


def _with_own_ways(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    groups = [
        {**saved, **{name: own[name] for name in _WAYS if name in own}}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=False)  # torch compares the numbers
    ]
    return {**state, "param_groups": [*groups, *state["param_groups"][len(groups) :]]}
