"""Interleaved timing, and where a result is written."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(sides: Mapping[str, Callable[[], Any]], repeats: int = 9) -> dict[str, list[float]]:
    """Run every side once to warm up, then in turn ``repeats`` times; seconds per side and repeat."""
    for side in sides.values():
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Mapping[str, list[float]], baseline: str) -> dict[str, float]:
    """Median of each side over the median of the baseline."""
    base = statistics.median(seconds[baseline])
    return {name: round(statistics.median(values) / base, 3) for name, values in seconds.items()}


def write(name: str, cases: list[dict[str, Any]]) -> Path:
    """Write ``results/NAME.json`` with what is needed to judge the numbers."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "python": platform.python_version()}
    path.write_text(json.dumps({"machine": {**machine, "cpu": platform.machine()}, "cases": cases}, indent=1) + "\n")
    return path
