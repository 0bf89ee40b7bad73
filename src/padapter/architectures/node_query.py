"""The features of the query nodes where they are not the ``query`` of the attention function.

A forward hook on the module that makes them keeps its output until the attention function asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from padapter.architectures.per_thread import PerThread
from padapter.architectures.table import NodeQuery

if TYPE_CHECKING:
    from padapter.architectures.interface import AttentionShim


@dataclass(frozen=True)
class PackedSlice:
    """The queries from ``start`` on, of ``total`` ones of a packed sequence."""

    start: int
    total: int


class NodeQueryTap:
    """Forward hook on the module whose output is the query before rotation.

    Args:
        attention: the attention module, a shim.
        where: what its row says.
    """

    _kept = PerThread()  # (arguments, output, queries handed out so far) of the pass that is running

    def __init__(self, attention: AttentionShim, where: NodeQuery) -> None:
        self.attention = attention
        self.where = where
        self.source = self._find()
        self.source.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        """Keep the output while an adapter wants it."""
        self._kept = (args, output, 0) if self.attention.padapter_layer.changes_attention() else None

    def take(self, query: torch.Tensor) -> tuple[torch.Tensor, PackedSlice | None]:
        """The node features that belong to a ``query`` (B, H, N1, dk) of the attention function.

        A module that calls the function once per image, on slices of one packed sequence, gets them slice by slice.

        Returns:
            the features (B, H, N1, dh), and which slice they are, if the sequence is packed.

        Raises:
            RuntimeError: if the module that makes them has not run.
        """
        if self._find() is not self.source:  # another PEFT method has wrapped it meanwhile
            self._move()
        if self._kept is None:
            raise RuntimeError(
                f"the p-adapter of {type(self.attention).__name__} has not seen the output of {self.where.path!r}, "
                "which it needs as features of the query nodes. Does the module run a fused or replaced projection?"
            )
        args, output, start = self._kept
        nodes = _as_heads(output, self.where.layout, query.shape[1])
        end = start + query.shape[2]
        self._kept = None if end >= nodes.shape[2] else (args, output, end)
        packed = PackedSlice(start, nodes.shape[2]) if output.dim() == 2 else None
        return nodes[:, :, start:end], packed

    def remove(self) -> None:
        """Stop listening."""
        hooks = self.source._forward_hooks
        for key in [key for key, hook in hooks.items() if hook is self]:
            del hooks[key]

    def _find(self) -> nn.Module:
        return self.attention.get_submodule(self.where.path)  # type: ignore[attr-defined]

    def _move(self) -> None:
        self.remove()
        self.source = self._find()
        if self._kept is not None:  # what was kept came from inside the wrapper
            args, _, start = self._kept
            self._kept = (args, self.source(*args), start)
        self.source.register_forward_hook(self)


def _as_heads(output: torch.Tensor, layout: str, heads: int) -> torch.Tensor:
    """The output of a query projection as (B, H, N, dh)."""
    if layout == "heads first":
        return output
    if layout == "heads last":
        return output.transpose(1, 2)
    if layout == "fused":
        output = output[..., : output.shape[-1] // 3]
    if output.dim() == 2:  # a packed sequence has no batch dimension
        output = output.unsqueeze(0)
    return output.unflatten(-1, (heads, -1)).transpose(1, 2)
