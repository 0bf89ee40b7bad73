"""Weights that accelerate keeps elsewhere (``cpu_offload``, ``disk_offload``, a ``device_map`` that does not fit).

Between calls such a weight is on the meta device; accelerate's hook fetches it when its module is called. An adapter
layer also reads weights of modules that it does not call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate fetches this module's own weights for each call."""
    hook = module.__dict__.get("_hf_hook")
    hooks = getattr(hook, "hooks", (hook,))  # accelerate chains several
    return any(getattr(hook, "offload", False) for hook in hooks)


def fetched(*modules: nn.Module) -> AbstractContextManager[None]:
    """A context in which the weights of these modules are where they are computed with."""
    away = [module for module in modules if is_offloaded(module)]
    return _fetched(away) if away else nullcontext()


@contextmanager
def _fetched(modules: list[nn.Module]) -> Iterator[None]:
    nothing = torch.empty(0)
    for module in modules:
        module._hf_hook.pre_forward(module)  # type: ignore[operator, union-attr]
    try:
        yield
    finally:
        for module in modules:
            module._hf_hook.post_forward(module, nothing)  # type: ignore[operator, union-attr]
