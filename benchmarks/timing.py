"""Interleaved timing, memory, and how a result is written."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
#: Medians are of at least so many repeats.
REPEATS = 7


def interleaved(
    sides: Mapping[str, Callable[[], Any]], repeats: int = REPEATS, *, warm: bool = False
) -> dict[str, list[float]]:
    """Run every side in turn ``repeats`` times, after one round to warm up; seconds per side and repeat."""
    if not warm:
        for side in sides.values():
            side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], baseline: str) -> dict[str, float]:
    """Median of each side over the median of the baseline."""
    base = statistics.median(seconds[baseline])
    return {name: round(statistics.median(values) / base, 3) for name, values in seconds.items()}


def compare(seconds: Mapping[str, Sequence[float]], baseline: str, **target: float) -> dict[str, Any]:
    """The part of a case that `performance` makes a row of.

    Args:
        seconds: per side and repeat, the sides in turn.
        baseline: the side that the others are divided by.
        target: side -> what its ratio shall not exceed.
    """
    return {
        "baseline": baseline,
        "ratio": ratios(seconds, baseline),
        "target": target,
        "median": {name: _rounded(statistics.median(values)) for name, values in seconds.items()},
        "quartiles": {name: _quartiles(values) for name, values in seconds.items()},
        "repeats": min(len(values) for values in seconds.values()),
        "seconds": {name: [_rounded(value) for value in values] for name, values in seconds.items()},
    }


def compare_memory(peaks: Mapping[str, float], baseline: str, **target: float) -> dict[str, Any]:
    """The same for peaks of memory.

    Args:
        peaks: bytes per side.
        baseline: the side that the others are divided by.
        target: side -> what its ratio shall not exceed.
    """
    return {
        "peak_baseline": baseline,
        "peak_mb": {name: round(value / 2**20, 1) for name, value in peaks.items()},
        "peak_ratio": {name: round(value / max(peaks[baseline], 1), 3) for name, value in peaks.items()},
        "peak_target": target,
    }


def _quartiles(values: Sequence[float]) -> list[float]:
    if len(values) < 2:
        return [_rounded(value) for value in (*values, *values)]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [_rounded(low), _rounded(high)]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def machine() -> dict[str, Any]:
    """What is needed to judge numbers: processor, threads, versions."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "denormals": "flushed" if float(torch.tensor([1e-40]) * 1) == 0 else "kept",
    }


def facts() -> Iterator[dict[str, Any]]:
    """For a process of its own: `machine` as benchmarks see it."""
    yield machine()


def _cpu_model() -> str:
    file = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", file.read_text(), re.MULTILINE) if file.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def write(name: str, cases: Sequence[Mapping[str, Any]], folder: Path = RESULTS, **about: Any) -> Path:
    """Write ``FOLDER/NAME.json``.

    Args:
        name: of the benchmark.
        cases: what it has found.
        folder: for the file.
        about: what else to say about the run, such as ``quick`` and ``machine``; default: this process's machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps({"benchmark": name, "machine": machine(), **about, "cases": cases}, indent=1)
    # A list of numbers on one line: readers and diffs are spared hundreds of them.
    text = re.sub(r"\[[\s\d.,eE+-]+\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def peak_above(work: Callable[[], Any]) -> int:
    """Bytes that the resident memory of this process grows by at most while ``work`` runs, on Linux.

    What the allocator holds free is given back first. Call it in a process of its own, after a smaller run of the same
    work has loaded the libraries.
    """
    from padapter.comparison.measure import forget_peak, peak_memory

    ctypes.CDLL(None).malloc_trim(0)
    forget_peak()
    before = _resident()
    work()
    peak, own = peak_memory()
    if not own:
        raise RuntimeError("the peak of memory cannot be told from /proc/self/status on this system")
    return peak - before


def _resident() -> int:
    found = re.search(r"^VmRSS:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
