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
    "operator": Benchmark(90, "p-Laplacian attention against scaled_dot_product_attention: time, memory", True),
    "scaling": Benchmark(60, "how its time, and that of a training step, grow with each size"),
    "step": Benchmark(80, "a training step of the built-in model with each method"),
    "blip_step": Benchmark(360, "a training step at BLIP base size with each method, and with PEFT's own LoRA"),
    "ranking": Benchmark(310, "ranking of 3,128 candidates and beam search, against the plain ways", long=True),
    "kernel": Benchmark(10, "the GPU kernels against flash attention"),
    "features": Benchmark(100, "the first and the second epoch with --cache-features, BLIP base size", long=True),
}
