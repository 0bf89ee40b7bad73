"""Which implementation of `p_laplacian_attention` runs, and why: fused kernels (Triton or C), or eager PyTorch."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from padapter.errors import UserError

Path = Literal["triton", "native", "eager"]
Kernel = Literal["auto", "eager", "native", "triton"]
KERNELS: tuple[str, ...] = get_args(Kernel)
#: The environment variable that forces a path.
VARIABLE = "PADAPTER_KERNEL"

#: Widest head of the kernels' table of block sizes.
WIDEST = 256
DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# Read once, so that a compiled graph need not look at the environment.
_wanted: str = os.environ.get(VARIABLE, "auto") or "auto"


class Choice(NamedTuple):
    """An implementation and the reason for it.

    Attributes:
        path: "triton", "native" or "eager".
        reason: one clause, for people.
    """

    path: Path
    reason: str


@contextmanager
def forced(kernel: Kernel) -> Iterator[None]:
    """Within the block, choose as if ``PADAPTER_KERNEL`` had this value.

    Args:
        kernel: "auto", "eager", "native" or "triton".

    Raises:
        UserError: if there is no such value.
    """
    global _wanted
    before, _wanted = _wanted, kernel
    try:
        wanted()
        yield
    finally:
        _wanted = before


def wanted() -> str:
    """What ``PADAPTER_KERNEL`` asked for when this package was imported: "auto", "eager", "native" or "triton".

    Raises:
        UserError: if it asked for something else.
    """
    if _wanted not in KERNELS:
        raise UserError(f"{VARIABLE}: got {_wanted!r}, accepted are {', '.join(KERNELS)}")
    return _wanted


def choose(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    node_query: Tensor | None = None,
    attention_mask: Tensor | None = None,
    metric_factor: Tensor | None = None,
    steps: int = 1,
    dropout_p: float = 0.0,
    scale: float | Tensor | None = None,
    numbers: tuple[float | Tensor, ...] = (),
) -> Choice:
    """Choose the implementation for these arguments of `p_laplacian_attention`.

    Args:
        query: (B, H, N1, dk).
        key: (B, Hkv, N2, dk).
        value: (B, Hkv, N2, dh).
        node_query: (B, H, N1, dh) or None.
        attention_mask: broadcastable to (B, H, N1, N2), or None.
        metric_factor: (H, dh, dh) or None.
        steps: K.
        dropout_p: probability of dropping a weight.
        scale: factor of the scores.
        numbers: p and mu.

    Returns:
        The choice: fused kernels wherever they can run, unless ``PADAPTER_KERNEL`` says otherwise.

    Raises:
        UserError: if ``PADAPTER_KERNEL`` names kernels that cannot run, with the reason; or if the variable has a
            value that does not exist.
    """
    choice = on_device(query.device)
    if choice.path == "eager":
        return choice
    tensors = [query, key, value, node_query, attention_mask, metric_factor, scale, *numbers]
    derivatives = _unusual_derivatives([it for it in tensors if isinstance(it, Tensor)])
    if derivatives is not None:
        return _decided(choice.path, derivatives)
    if isinstance(scale, Tensor):
        return _decided(choice.path, "scale is a tensor")
    obstacle = _obstacle(choice.path, query, key, value, node_query, attention_mask, metric_factor, steps)
    if obstacle is None and choice.path == "triton" and wanted() == "auto":
        index = query.device.index
        widths = query.shape[-1], value.shape[-1]
        obstacle = _distrust(-1 if index is None else index, query.dtype, *widths, dropout_p > 0.0)
    return choice if obstacle is None else _decided(choice.path, obstacle)


def on_device(device: torch.device) -> Choice:
    """Choose for tensors of a device, before anything else is known of them.

    Args:
        device: where the tensors are.

    Returns:
        The choice; a path of kernels means unless the arguments have something that they do not cover.

    Raises:
        UserError: as `choose`.
    """
    kernel = wanted()
    if kernel == "eager":
        return Choice("eager", f"{VARIABLE}=eager")
    path: Path = "native" if kernel == "native" or (kernel == "auto" and device.type == "cpu") else "triton"
    return _decided(path, device_obstacle(path, device))


def _decided(path: Path, obstacle: str | None) -> Choice:
    forced = wanted() == path
    if obstacle is None:
        return Choice(path, f"{VARIABLE}={path}" if forced else f"the {path} kernels cover this call")
    if forced:
        raise UserError(
            f"{VARIABLE}={path}: the {path} kernels cannot run here: {obstacle}. Unset it, or set it to auto."
        )
    return Choice("eager", obstacle)


def device_obstacle(path: Path, device: torch.device) -> str | None:
    """Why kernels cannot run on tensors of a device, or None if they can.

    Args:
        path: "triton" (GPUs; and, where Triton interprets, processors) or "native" (processors).
        device: where the tensors are.

    Returns:
        One clause, for people, or None.
    """
    if path == "native":
        if device.type != "cpu":
            return f"they are for processors, and the tensors are on {device.type!r}"
        return _native_obstacle()
    if device.type == "cpu":
        if _interpreting():
            return None
        return "the tensors are on the CPU, where they run only in Triton's interpreter (TRITON_INTERPRET=1), for tests"
    if device.type != "cuda":
        return f"the kernels are written for CUDA, and the tensors are on {device.type!r}"
    return _cuda_obstacle(device.index if device.index is not None else -1)


@torch.compiler.assume_constant_result
def _native_obstacle() -> str | None:
    from padapter.functional.native.library import obstacle

    return obstacle()


@torch.compiler.assume_constant_result
def _cuda_obstacle(index: int) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.version.hip is not None:
        return "the kernels have not been tried on AMD GPUs"
    major, minor = torch.cuda.get_device_capability(None if index < 0 else index)
    if major < 8:
        return f"the GPU has compute capability {major}.{minor}, and the kernels need 8.0 (Ampere) or later"
    return None


@torch.compiler.assume_constant_result
def _distrust(index: int, dtype: torch.dtype, dk: int, dh: int, dropout: bool) -> str | None:
    from padapter.functional.fused.self_check import failure

    device = torch.device("cuda", torch.cuda.current_device() if index < 0 else index)
    return failure(device, dtype, dk, dh, dropout)


@torch.compiler.assume_constant_result
def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None


def _unusual_derivatives(tensors: list[Tensor]) -> str | None:
    """The kernels have an ordinary backward pass: no tangents, and no rule for transformations of functions."""
    if torch.compiler.is_compiling():
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transformation of torch.func is at work"
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(it).tangent is not None for it in tensors):
        return "forward-mode derivatives are asked for"
    return None


def _obstacle(
    path: Path,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    node_query: Tensor | None,
    attention_mask: Tensor | None,
    metric_factor: Tensor | None,
    steps: int,
) -> str | None:
    """Why the kernels do not cover these arguments, or None if they do."""
    nodes = query if node_query is None else node_query
    if steps > 1:
        return f"steps is {steps}, and the kernels make one"
    for name, tensor in (("query", query), ("key", key), ("value", value), ("node_query", nodes)):
        if tensor.dtype not in DTYPES:
            return f"{name} is {tensor.dtype}, and the kernels take float16, bfloat16 and float32"
        if tensor.device != query.device:
            return f"{name} is on another device than query"
        if tensor.numel() == 0:
            return f"{name} is empty"
    if query.dtype != key.dtype:
        return f"query is {query.dtype} and key {key.dtype}"
    if path == "triton" and max(query.shape[-1], value.shape[-1]) > WIDEST:
        return f"heads are wider than {WIDEST}"
    if metric_factor is not None and metric_factor.device != query.device:
        return "the metric factor is on another device than query"
    if metric_factor is not None and metric_factor.requires_grad and metric_factor.dtype == torch.float64:
        return "a gradient of a float64 metric factor is asked for"
    if attention_mask is None:
        return None
    if attention_mask.requires_grad:
        return "the attention mask needs a gradient"
    if attention_mask.device != query.device:
        return "the attention mask is on another device than query"
    return None
