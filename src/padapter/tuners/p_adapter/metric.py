"""The metric factor of an adapter layer inside compiled graphs.

The factor depends on the frozen projection alone, so a layer keeps it (`PAdapterLayer.metric_factor`). What tells
whether it is still right, the address and the version of a weight, cannot be read while a graph is compiled. A compiled
graph therefore calls an operator that asks the layer when the graph runs: nothing need be computed beforehand, and a
changed weight is noticed as it is in eager mode.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch

_LAYERS: WeakValueDictionary[int, Any] = WeakValueDictionary()
_NUMBERS = itertools.count()


class KeptMetric(NamedTuple):
    """A metric factor, and what it was computed from.

    Attributes:
        key: which tensor, in which state as far as PyTorch knows.
        factor: (H, dh, dh).
        mark: (d,), that weight in one fixed direction, which differs if the weight does.
    """

    key: tuple[Any, ...]
    factor: torch.Tensor
    mark: torch.Tensor


@functools.cache
def direction(width: int) -> torch.Tensor:
    """A fixed random direction (width,), in float64."""
    # NumPy's: whatever default device or fake tensors a caller has set must not get into what is kept.
    return torch.from_numpy(np.random.default_rng(0).standard_normal(width))


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
