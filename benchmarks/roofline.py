"""How near the GPU kernel comes to what the GPU can do: arithmetic per second against arithmetic per byte."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Matrix products of N x N x d that the mathematics asks for, forward; backward asks for twice as many.
PRODUCTS = {"sdpa": 2, "triton": 3}  # scores and sum; p-Laplacian distances are one more
#: Tensors (B, H, N, d) read or written at least: query, key, value, context; backward those again and their gradients.
TENSORS = {"forward": 4, "forward + backward": 12}
PASSES = {"forward": 1, "forward + backward": 3}
_BYTES = {"torch.bfloat16": 2, "torch.float16": 2, "torch.float32": 4}
_MARKS = {"sdpa": "s", "triton": "o"}
_COLOURS = {"forward": "#2b6ca3", "forward + backward": "#c44e1b"}


class Peak(NamedTuple):
    """What a GPU can do at most, by its data sheet: operations and bytes per second."""

    flops: float
    bandwidth: float


#: Part of a GPU's name -> bfloat16 without sparsity. The first that fits counts.
PEAKS = {
    "H200": Peak(989e12, 4.8e12),
    "H100 PCIe": Peak(756e12, 2.0e12),
    "H100": Peak(989e12, 3.35e12),
    "A100": Peak(312e12, 2.039e12),
}


class Point(NamedTuple):
    """One case of one side: operations per byte, and operations per second."""

    intensity: float
    flops: float


def point(case: Mapping[str, Any], part: str, side: str) -> Point:
    """Where a case of kernel.json lies; work that a kernel repeats instead of storing is not counted."""
    rows = case["batch"] * case["heads"]
    pairs = case["tokens"] ** 2 / (2 if case["causal"] else 1)
    flops = PASSES[part] * PRODUCTS[side] * 2 * rows * pairs * case["width"]
    moved = TENSORS[part] * rows * case["tokens"] * case["width"] * _BYTES[case["dtype"]]
    return Point(flops / moved, flops / (case["median_ms"][part][side] / 1000))


def roof(peak: Peak, intensity: float) -> float:
    """Operations per second that are possible at an intensity."""
    return min(peak.flops, peak.bandwidth * intensity)


def peak_of(gpu: str) -> Peak:
    """A known GPU's.

    Raises:
        ValueError: it is not known.
    """
    for part, peak in PEAKS.items():
        if part in gpu:
            return peak
    raise ValueError(f"the peak of {gpu!r} is not known: give --peak-tflops and --bandwidth-gb")


def label(case: Mapping[str, Any]) -> str:
    """A case of kernel.json in words."""
    words = [f"{case['batch']} x {case['heads']} x {case['tokens']:,} x {case['width']}"]
    words.append(case["dtype"].removeprefix("torch."))
    words += ["causal"] * case["causal"] + ["no metric factor"] * (not case["metric_factor"])
    words += [case["degree"]] * (case["degree"] != "row")
    return ", ".join(words)


def figure(result: Mapping[str, Any], peak: Peak | None = None) -> Figure:
    """The bfloat16 cases in row degree below the roof of their GPU.

    Args:
        result: the content of kernel.json.
        peak: of the GPU; default: that of `PEAKS`.
    """
    from matplotlib.figure import Figure

    cases = [case for case in result["cases"] if case["dtype"] == "torch.bfloat16" and case["degree"] == "row"]
    gpu = result["cases"][0]["gpu"]
    peak = peak or peak_of(gpu)
    drawing = Figure(figsize=(6.4, 4.2), layout="constrained", facecolor="white")
    axes = drawing.subplots()
    every = []
    for part, colour in _COLOURS.items():
        for side, mark in _MARKS.items():
            points = [point(case, part, side) for case in cases]
            every += points
            name = {"sdpa": "flash attention", "triton": "p-Laplacian"}[side]
            axes.scatter(*zip(*points, strict=True), marker=mark, color=colour, s=22, label=f"{name}, {part}")
    ridge = peak.flops / peak.bandwidth
    ends = sorted({min(ridge, *(p.intensity for p in every)) / 2, ridge, max(ridge, *(p.intensity for p in every)) * 2})
    axes.plot(ends, [roof(peak, x) for x in ends], color="#333333", linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte that must be moved")
    axes.set_ylabel("operations per second")
    axes.set_title(gpu, fontsize=9)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
    return drawing
