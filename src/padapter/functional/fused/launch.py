"""From tensors to kernel launches: block sizes, strides, outputs. Imports Triton only when a kernel is launched."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from padapter.functional.fused.dropout import Dropout

MODULE = "padapter.functional.fused"

# Block of queries, block of keys, warps, pipeline stages. A fixed table: an autotuner would make the first step of
# every new shape wait. Chosen, without a GPU, so that the compiler keeps (nearly) everything in registers, and that
# every kernel fits into the 99 KiB of shared memory that all GPUs of compute capability 8.0 and later have, which
# tests/functional/test_kernel_compiles.py checks. Float32 heads of 256 do not fit into registers at any size.
_BLOCKS: dict[tuple[str, bool], dict[int, tuple[int, int, int, int]]] = {
    ("forward", False): {64: (64, 32, 4, 2), 128: (64, 32, 4, 2), 256: (32, 32, 8, 1)},
    ("forward", True): {32: (64, 32, 4, 2), 64: (32, 32, 4, 2), 128: (32, 16, 4, 1), 256: (16, 16, 8, 1)},
    ("backward", False): {64: (32, 32, 4, 2), 128: (32, 32, 8, 1), 256: (16, 32, 8, 1)},
    ("backward", True): {32: (32, 32, 4, 2), 64: (32, 32, 8, 1), 128: (16, 32, 8, 1), 256: (16, 16, 8, 1)},
}


class Plan(NamedTuple):
    """One launch: everything a kernel needs, without Triton.

    Attributes:
        module: module of `padapter.functional.fused` that holds the kernel.
        kernel: its name.
        programs: how many programs run.
        arguments: tensors and numbers by name.
        constants: compile-time constants by name.
        options: ``num_warps`` and ``num_stages``.
    """

    module: str
    kernel: str
    programs: int
    arguments: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, int]

    def run(self) -> None:
        """Launch it on the device of its tensors."""
        kernel = getattr(importlib.import_module(f"{MODULE}.{self.module}"), self.kernel)
        device = self.arguments["q_ptr"].device
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            kernel[(self.programs,)](**self.arguments, **self.constants, **self.options)


class Features(NamedTuple):
    """What p-Laplacian message passing needs besides scores; see `padapter.functional.fused.operators`."""

    value: Tensor  # (B, Hv, N2, dh)
    node_query: Tensor | None  # (B, H, N1, dh), None without a restart
    near_query: Tensor | None  # (B, H, N1, dh), features that distances are taken of; None for p = 2
    near_value: Tensor | None  # (B, Hy, N2, dh)
    p: Tensor  # (H,) float32
    restart: Tensor | None  # (H,) float32
    relative: float
    least: float
    dropout: Dropout | None = None


class Scores(NamedTuple):
    """Where scores come from."""

    query: Tensor  # (B, H, N1, dk)
    key: Tensor  # (B, Hkv, N2, dk)
    mask: Tensor | None  # (1 | B, 1 | H, 1 | N1, 1 | N2), boolean or added
    scale: float
    causal: bool


def block_sizes(kind: str, width: int, wide: bool) -> tuple[int, int, int, int]:
    """Look up blocks of queries and keys, warps and stages.

    Args:
        kind: "forward" or "backward".
        width: the larger of dk and dh, up to 256.
        wide: whether any product of matrices takes float32.

    Returns:
        (BLOCK_M, BLOCK_N, num_warps, num_stages).
    """
    table = _BLOCKS[kind, wide]
    return table[min(limit for limit in table if limit >= width)]


def padded(width: int) -> int:
    """The tile that holds ``width`` columns: a power of two, and at least the 16 that `tl.dot` takes."""
    return max(16, 1 << (width - 1).bit_length())


def forward_plan(scores: Scores, features: Features, out: Tensor, statistics: tuple[Tensor, Tensor, Tensor]) -> Plan:
    """Plan the context of all queries: writes ``out`` (B, H, N1, dh) and three numbers per query."""
    row_max, row_log, log_total = statistics
    arguments, constants, options, blocks = _common("forward", scores, features)
    arguments |= {"out_ptr": out, **_strides("o", out), **_strides("n", _or(features.node_query, scores.query))}
    arguments |= {"n_ptr": _or(features.node_query, scores.query), "restart_ptr": _or(features.restart, scores.query)}
    arguments |= {"row_max_ptr": row_max, "row_log_ptr": row_log, "log_total_ptr": log_total, "blocks": blocks[0]}
    return Plan("kernel_forward", "forward_kernel", blocks[0] * row_max[..., 0].numel(), arguments, constants, options)


class RowGradients(NamedTuple):
    """What `backward_rows_plan` writes; None where there is no such input."""

    query: Tensor  # (B, H, N1, dk)
    node_query: Tensor | None
    near_query: Tensor | None
    p: Tensor  # (B, H, N1) float32, each query's share
    restart: Tensor | None
    delta: Tensor  # (B, H, N1) float32: dL/dcontext . context
    restart_change: Tensor | None  # (B, H, N1) float32: dL/d log restart


def backward_rows_plan(
    scores: Scores,
    features: Features,
    out: Tensor,
    statistics: tuple[Tensor, Tensor, Tensor],
    upstream: Tensor,
    gradients: RowGradients,
) -> Plan:
    """Plan the gradients of what belongs to queries."""
    row_max, row_log, log_total = statistics
    node_query = _or(features.node_query, scores.query)
    nothing = gradients.query
    arguments, constants, options, blocks = _common("backward", scores, features)
    arguments |= {"out_ptr": out, "g_ptr": upstream, **_strides("o", out), **_strides("g", upstream)}
    arguments |= {"n_ptr": node_query, "restart_ptr": _or(features.restart, scores.query), **_strides("n", node_query)}
    arguments |= {"row_max_ptr": row_max, "row_log_ptr": row_log, "log_total_ptr": log_total, "blocks": blocks[0]}
    arguments |= {
        "dq_ptr": gradients.query,
        "dn_ptr": _or(gradients.node_query, nothing),
        "dx_ptr": _or(gradients.near_query, nothing),
        "dp_ptr": gradients.p,
        "drestart_ptr": _or(gradients.restart, nothing),
        "delta_ptr": gradients.delta,
        "restart_change_ptr": _or(gradients.restart_change, nothing),
        # exp of it is half the exponent range of float32, as in the eager form
        "largest_inverse": 44.36,
    }
    programs = blocks[0] * row_max[..., 0].numel()
    return Plan("kernel_backward", "backward_rows_kernel", programs, arguments, constants, options)


def backward_columns_plan(
    scores: Scores,
    features: Features,
    statistics: tuple[Tensor, Tensor, Tensor],
    upstream: Tensor,
    rows: RowGradients,
    gradients: tuple[Tensor, Tensor, Tensor | None],
) -> Plan:
    """Plan the gradients of key, value and near_value, each (B, H, N2, .): one per query head."""
    row_max, row_log, log_total = statistics
    d_key, d_value, d_near = gradients
    arguments, constants, options, blocks = _common("backward", scores, features)
    arguments |= {"g_ptr": upstream, **_strides("g", upstream), "blocks": blocks[1]}
    arguments |= {"row_max_ptr": row_max, "row_log_ptr": row_log, "log_total_ptr": log_total}
    arguments |= {"delta_ptr": rows.delta, "restart_change_ptr": _or(rows.restart_change, rows.delta)}
    arguments |= {"dk_ptr": d_key, "dv_ptr": d_value, "dy_ptr": _or(d_near, d_key)}
    programs = blocks[1] * row_max[..., 0].numel()
    return Plan("kernel_backward", "backward_columns_kernel", programs, arguments, constants, options)


def degrees_plan(
    kernel: str, scores: Scores, statistics: tuple[Tensor, Tensor], *, by_rows: bool, **tensors: Tensor
) -> Plan:
    """Plan one of the four kernels about column sums of M; ``tensors`` are what it reads or writes besides."""
    arguments, constants, options, blocks = _about_scores("backward" if "backward" in kernel else "forward", scores)
    number = blocks[0] if by_rows else blocks[1]
    arguments |= {"row_max_ptr": statistics[0], "row_log_ptr": statistics[1], "blocks": number, **tensors}
    return Plan("kernel_degrees", kernel, number * statistics[0][..., 0].numel(), arguments, constants, options)


def readable(tensor: Tensor) -> Tensor:
    """The tensor, copied if its last dimension is not contiguous, which is what kernels read."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _about_scores(
    kind: str, scores: Scores, width: int = 0, narrow: bool = True
) -> tuple[dict[str, Any], dict[str, Any], dict[str, int], tuple[int, int]]:
    """What every kernel takes: arguments, constants, options; and the numbers of blocks of queries and of keys."""
    query, key, mask, scale, causal = scores
    B, H, N1, dk = query.shape
    N2 = key.shape[2]
    wide = query.dtype == torch.float32
    block_m, block_n, warps, stages = block_sizes(kind, max(width, dk), wide or not narrow)
    mask_strides = (0, 0, 0, 0) if mask is None else mask.expand(B, H, N1, N2).stride()
    arguments: dict[str, Any] = {
        "q_ptr": query,
        "k_ptr": key,
        "mask_ptr": query if mask is None else mask,
        **_strides("q", query),
        **_strides("k", key),
        **dict(zip(("m_b", "m_h", "m_q", "m_k"), mask_strides, strict=True)),
        "H": H,
        "k_groups": H // key.shape[1],
        "N1": N1,
        "N2": N2,
        "DK": dk,
        "scale": scale,
    }
    constants = {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": padded(dk),
        "CAUSAL": causal,
        "MASK": 0 if mask is None else 1 if mask.dtype == torch.bool else 2,
        # Float32 models get float32. In half precision models some features are float32 all the same (behind the
        # metric factor): three products in TF32 keep all but the last bit or two, on tensor cores.
        "PRECISION": "emulated" if query.device.type == "cpu" else "ieee" if wide else "tf32x3",
    }
    blocks = (-(-N1 // block_m), -(-N2 // block_n))
    return arguments, constants, {"num_warps": warps, "num_stages": stages}, blocks


def _common(
    kind: str, scores: Scores, features: Features
) -> tuple[dict[str, Any], dict[str, Any], dict[str, int], tuple[int, int]]:
    value = features.value
    H, dh = scores.query.shape[1], value.shape[-1]
    x, y = _or(features.near_query, scores.query), _or(features.near_value, scores.key)
    narrow = all(tensor.dtype != torch.float32 for tensor in (value, x))
    arguments, constants, options, blocks = _about_scores(kind, scores, dh, narrow)
    arguments |= {"v_ptr": value, "x_ptr": x, "y_ptr": y, "p_ptr": features.p}
    arguments |= {**_strides("v", value), **_strides("x", x), **_strides("y", y), "DH": dh}
    arguments |= {"v_groups": H // value.shape[1], "y_groups": H // y.shape[1]}
    arguments |= {"relative": features.relative, "least": features.least}
    dropout = features.dropout
    seed, below, factor = (scores.query, 0, 1.0) if dropout is None else dropout
    arguments |= {"seed_ptr": seed, "below": below, "factor": factor}
    constants |= {
        "BLOCK_D": padded(dh),
        "DISTANCE": features.near_query is not None,
        "RESTART": features.restart is not None,
        "DROPOUT": dropout is not None,
    }
    return arguments, constants, options, blocks


def _strides(letter: str, tensor: Tensor) -> dict[str, int]:
    return {f"{letter}_{axis}": tensor.stride(i) for i, axis in enumerate("bhn")}


def _or(tensor: Tensor | None, instead: Tensor) -> Tensor:
    """A pointer that is never read stands for an absent tensor."""
    return instead if tensor is None else tensor
