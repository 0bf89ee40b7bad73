"""Which queries of an encoder's cross-attention are padding.

Its own mask speaks of keys, image tokens say, and nothing of queries. But the same tokens have attended to themselves
just before, under a mask that says which of them are padding: a hook on that module keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from padapter.architectures.per_thread import PerThread

if TYPE_CHECKING:
    from padapter.architectures.interface import AttentionShim


def hidden_keys(mask: torch.Tensor) -> torch.Tensor:
    """Which keys no query attends to: padding, in the self-attention of an encoder.

    Args:
        mask: boolean (True = attend) or additive, (B or 1, H or 1, N1 or 1, N2).

    Returns:
        (B or 1, H or 1, N2).
    """
    # Half of the smallest number: position biases are far above it, and hidden keys below it.
    hidden = ~mask if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2
    return hidden.all(dim=-2)


class PaddingTap:
    """Forward pre-hook on the self-attention whose mask tells padding among the queries of a cross-attention.

    Args:
        attention: the cross-attention module, a shim.
        source: the self-attention module; ``attention_mask`` is its second argument.
    """

    _kept = PerThread()  # (B or 1, N1), of the pass that is running; None without a mask

    def __init__(self, attention: AttentionShim, source: nn.Module) -> None:
        self.attention = attention
        self.source = source
        source.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep which tokens are there while an adapter wants it."""
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        self._kept = None
        if mask is not None and self.attention.padapter_layer.changes_attention():
            self._kept = ~hidden_keys(mask).all(dim=1)

    def take(self, query: torch.Tensor) -> torch.Tensor | None:
        """Which queries of a ``query`` (B, H, N1, dk) are tokens, (B or 1, N1), or None: all.

        Raises:
            RuntimeError: if the mask was about other tokens.
        """
        present, self._kept = self._kept, None
        if present is not None and (present.shape[1] != query.shape[2] or present.shape[0] not in (1, query.shape[0])):
            raise RuntimeError(
                f"the p-adapter of {type(self.attention).__name__} looked for padding among {tuple(query.shape)} "
                f"queries in a mask about {tuple(present.shape)} tokens; mend `padding` in the row of the module."
            )
        return present

    def remove(self) -> None:
        """Stop listening."""
        hooks = self.source._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is self]:
            del hooks[key]
            self.source._forward_pre_hooks_with_kwargs.pop(key, None)
