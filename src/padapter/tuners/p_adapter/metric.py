"""The metric factor of an adapter layer inside compiled graphs.

The factor depends on the frozen projection alone, so a layer keeps it (`PAdapterLayer.metric_factor`). What tells
whether it is still right, the address and the version of a weight, cannot be read while a graph is compiled. A compiled
graph therefore calls an operator that asks the layer when the graph runs: nothing need be computed beforehand, and a
changed weight is noticed as it is in eager mode.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch

_LAYERS: WeakValueDictionary[int, Any] = WeakValueDictionary()
_NUMBERS = itertools.count()


def enrol(layer: torch.nn.Module) -> torch.Tensor:
    """Give a layer a number by which compiled graphs find it.

    A tensor (), so that it is an argument of a graph and not part of it; on the CPU, whatever the default device.
    """
    number = next(_NUMBERS)
    _LAYERS[number] = layer
    return torch.tensor(number, device="cpu")


@torch.library.custom_op("padapter::metric_factor", mutates_args=())
def metric_factor_of(
    number: torch.Tensor, like: torch.Tensor, num_heads: int, head_width: int, is_double: bool
) -> torch.Tensor:
    """The metric factor (H, dh, dh) of the layer with this number, on the device of ``like``.

    Args:
        number: (), what `enrol` gave for the layer.
        like: any tensor on the device where the factor is wanted.
        num_heads: H.
        head_width: dh.
        is_double: whether the projection is in float64, and with it the factor; else it is in float32.
    """
    factor: torch.Tensor = _LAYERS[int(number)].metric_factor(num_heads)
    return factor.to(like.device, copy=True)  # a compiler may write over what an operator returns


@metric_factor_of.register_fake
def _shape(number: torch.Tensor, like: torch.Tensor, num_heads: int, head_width: int, is_double: bool) -> torch.Tensor:
    return like.new_empty(num_heads, head_width, head_width, dtype=torch.float64 if is_double else torch.float32)
