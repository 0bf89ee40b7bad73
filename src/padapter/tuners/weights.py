"""The weight of a frozen output projection, whatever form the base model keeps it in."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers.pytorch_utils import Conv1D

from padapter.errors import UserError

_READABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_readable(linear: nn.Module, name: str) -> None:
    """Refuse a projection whose weight `projection_weight` could not make sense of.

    Args:
        linear: the projection.
        name: how to call it in the message.

    Raises:
        UserError: if its weight is quantised in a way that is not known, or is not there at all.
    """
    if _is_dequantised_by_name(linear):
        return
    weight = getattr(linear, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.dtype in _READABLE:
        return
    holds = "has no `weight`" if weight is None else f"holds its weight as {getattr(weight, 'dtype', type(weight))}"
    raise UserError(
        f"{name}: a p-adapter needs the weight of the output projection, and {type(linear).__name__} {holds}, which "
        "padapter cannot turn back into numbers. Quantise the model with bitsandbytes (8 or 4 bits), HQQ or torchao, "
        "keep these projections out of the quantisation, or use BottleneckConfig, which needs no weight."
    )


def stored_weight(linear: nn.Module) -> torch.Tensor:
    """The tensor that a projection keeps its weight in, of whatever dtype and shape; it tells when that changes."""
    stored: torch.Tensor = linear.W_q if hasattr(linear, "W_q") else linear.weight  # type: ignore[assignment]
    return stored


def projection_weight(linear: nn.Module) -> torch.Tensor:
    """Weight of a Linear or Conv1D, dequantised, detached; the module is left as it is.

    Returns:
        (out_features, in_features): the module's own tensor, or a new one where the module is quantised.

    Raises:
        UserError: if the weight is quantised in a way that is not known.
    """
    if _is_plain(linear) and linear.weight.dtype in _READABLE:
        weight: torch.Tensor = linear.weight  # type: ignore[assignment]
    else:
        check_readable(linear, "output projection")
        weight = _dequantised(linear)
    weight = weight.detach()
    return weight.T if isinstance(linear, Conv1D) else weight


def _is_plain(linear: nn.Module) -> bool:
    """Whether a weight is no quantised one; PEFT finds that out in ways no compiler follows."""
    return not hasattr(linear, "W_q") and type(getattr(linear, "weight", None)) is nn.Parameter


def _is_dequantised_by_name(linear: nn.Module) -> bool:
    """Whether a projection is of one of the kinds that PEFT, or this module, dequantises."""
    weight_class = type(getattr(linear, "weight", None))
    known = weight_class.__name__ in ("Int8Params", "Params4bit") or weight_class.__module__.startswith("torchao.")
    return known or hasattr(linear, "W_q")


def _dequantised(linear: nn.Module) -> torch.Tensor:
    # PEFT's function puts a new parameter in the module on the CPU, and with it an 8-bit module loses its scales.
    weight: Any = getattr(linear, "weight", None)
    kind = type(weight).__name__
    if kind == "Int8Params":
        return _from_8_bits(linear, weight)
    if kind == "Params4bit":
        return _from_4_bits(weight)
    return dequantize_module_weight(linear)


def _from_8_bits(linear: Any, weight: Any) -> torch.Tensor:
    """``code * scale / 127`` per row; not yet quantised, the weight is its own."""
    if weight.dtype != torch.int8:
        return weight.data
    # The scales move from the weight to the state of the module with its first call.
    scales = weight.SCB if weight.SCB is not None else linear.state.SCB
    return weight.data.float() * (scales.to(weight.device).float() / 127).unsqueeze(1)


def _from_4_bits(weight: Any) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    codes, state = weight.data, weight.quant_state
    if state is None:  # not yet quantised: that happens on the way to a device
        return codes
    if getattr(state, "packing_format_for_cpu", False):
        # Some processors get the codes in another order, and scales (in_features / block, out_features). A release
        # that does not pack them so has no function that undoes it.
        from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

        packed, state = state, copy.copy(state)
        state.original_nested = False
        codes, state = _convert_weight_packed_for_cpu_inverse(codes, state)
        state.absmax, state.nested = packed.absmax.T.reshape(-1).float(), False
    return dequantize_4bit(codes, state)
