"""All benchmarks: one module, one line."""

from __future__ import annotations

from typing import NamedTuple


class Benchmark(NamedTuple):
    """A module of this package with ``run(quick) -> Iterator[dict]``, the cases one after the other.

    Attributes:
        seconds: that it may take on two quiet cores; all of them together ten minutes.
        about: what it measures.
        compiles: whether ``run`` also takes ``compiled``: add torch.compile as a side.
    """

    seconds: int
    about: str
    compiles: bool = False


BENCHMARKS = {
    "operator": Benchmark(60, "p-Laplacian attention against scaled_dot_product_attention: time, memory", True),
    "scaling": Benchmark(60, "how its time, and that of a training step, grow with each size"),
    "step": Benchmark(40, "a training step of the built-in model with each method"),
    "blip_step": Benchmark(240, "a training step at BLIP base size with each method, and with PEFT's own LoRA"),
    "ranking": Benchmark(90, "ranking of 3,128 candidates and beam search, against the plain ways"),
    "kernel": Benchmark(10, "the GPU kernels against flash attention"),
    "features": Benchmark(100, "the first and the second epoch with --cache-features, BLIP base size"),
}
