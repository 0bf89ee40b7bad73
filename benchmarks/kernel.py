"""The fused kernels against flash attention and the eager path: ``python -m benchmarks kernel``, on a CUDA GPU.

Forward and forward + backward are timed with CUDA events, the sides in turn, each repeat after the cache of the GPU has
been overwritten; memory is the peak above what the inputs take.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.process import NotHereError
from padapter.functional import p_laplacian_attention
from padapter.functional.dispatch import forced

REPEATS, WARM_UP = 30, 5
CACHE_BYTES = 256 * 2**20  # more than the second-level cache of any current GPU


def timed(sides: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Milliseconds per side and repeat, in turn."""
    scratch = torch.empty(CACHE_BYTES // 4, dtype=torch.int32, device="cuda")
    for side in sides.values():
        for _ in range(WARM_UP):
            side()
    torch.cuda.synchronize()
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in sides}
    for _ in range(REPEATS):
        for name, side in sides.items():
            scratch.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            side()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in events.items()}


def peak(side: Callable[[], Any]) -> int:
    """Bytes at the peak of one call above what was there before."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    side()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def case(
    batch: int, heads: int, tokens: int, width: int, dtype: torch.dtype, *, causal: bool = False, factor: bool = True,
    degree: str = "row", eager: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """One size; ``eager`` includes the path that holds the scores in memory."""
    torch.manual_seed(0)
    tensors = [
        torch.randn(batch, tokens, heads, width, dtype=dtype, device="cuda").transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]
    p = torch.full((heads,), 1.5, device="cuda", requires_grad=True)
    mu = torch.full((heads,), 0.1, device="cuda", requires_grad=True)
    R = torch.randn(heads, width, width, device="cuda") / width**0.5 if factor else None
    upstream = torch.randn(batch, heads, tokens, width, dtype=dtype, device="cuda")

    def flash() -> Tensor:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
            return scaled_dot_product_attention(*tensors, is_causal=causal)

    def ours(kernel: str) -> Callable[[], Tensor]:
        def attend() -> Tensor:
            with forced(kernel):
                return p_laplacian_attention(*tensors, p=p, mu=mu, metric_factor=R, is_causal=causal, degree=degree)

        return attend

    forward = {"sdpa": flash, "triton": ours("triton")} | ({"eager": ours("eager")} if eager else {})

    def both(attend: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(attend(), leaves, upstream)

    backward = {name: both(it, tensors if name == "sdpa" else [*tensors, p, mu]) for name, it in forward.items()}
    with torch.no_grad():
        seconds = {"forward": timed(forward)}
    seconds["forward + backward"] = timed(backward)
    medians = {part: {name: statistics.median(it) for name, it in sides.items()} for part, sides in seconds.items()}
    return {
        "batch": batch, "heads": heads, "tokens": tokens, "width": width, "dtype": str(dtype), "causal": causal,
        "metric_factor": factor, "degree": degree,
        "ratio_to_sdpa": {part: {n: round(ms / it["sdpa"], 2) for n, ms in it.items()} for part, it in medians.items()},
        "median_ms": medians,
        "peak_bytes": {name: peak(side) for name, side in backward.items()},
        "milliseconds": seconds,
    }  # fmt: skip


def run(quick: bool = False) -> Iterator[dict[str, Any]]:
    """The sizes that matter.

    Raises:
        NotHereError: there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise NotHereError("there is no CUDA device")
    bf16, f32 = torch.bfloat16, torch.float32
    sizes: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((16, 12, 577, 64, bf16), {}),
        ((4, 12, 4096, 64, bf16), {}),
        ((4, 12, 4096, 64, bf16), {"factor": False}),
        ((4, 12, 4096, 64, bf16), {"causal": True}),
        ((4, 12, 4096, 64, bf16), {"degree": "symmetric"}),
        ((2, 16, 4096, 128, bf16), {}),
        ((1, 12, 16384, 64, bf16), {"eager": False}),
        ((16, 12, 577, 64, f32), {}),
        ((2, 12, 4096, 64, f32), {}),
    ]
    for size, options in sizes[:1] if quick else sizes:
        yield case(*size, **options) | {"gpu": torch.cuda.get_device_name()}
