"""All benchmarks: one module, one line."""

from __future__ import annotations

from typing import NamedTuple


class Benchmark(NamedTuple):
    """A module of this package with ``run(quick) -> Iterator[dict]``, the cases one after the other.

    Attributes:
        seconds: that it may take on two quiet cores; all that are not long together ten minutes.
        about: what it measures.
        long: whether it is left out unless it is named, or ``--all``.
        compiles: whether ``run`` also takes ``compiled``: add torch.compile as a side.
    """

    seconds: int
    about: str
    compiles: bool = False
    long: bool = False


BENCHMARKS = {
    "operator": Benchmark(85, "p-Laplacian attention against scaled_dot_product_attention: time, memory", True),
    "blip_step": Benchmark(240, "a training step at BLIP base size: adapter, p-adapter, LoRA, and PEFT's own LoRA"),
    "features": Benchmark(105, "the first and the second epoch with --cache-features, BLIP base size"),
    "ranking": Benchmark(150, "ranking of 3,128 candidates against a full forward for each"),
    "kernel": Benchmark(10, "the GPU kernels against flash attention"),
    "scaling": Benchmark(60, "how the operator's time, and that of a training step, grow with each size", long=True),
    "generation": Benchmark(60, "beam search against transformers' own", long=True),
    "step": Benchmark(80, "a training step of the built-in model with each method", long=True),
    "blip_bottleneck": Benchmark(365, "a training step at BLIP base size: the bottleneck form", long=True),
}
