"""Result files: where a number comes from, and writing it so that a crash leaves the old file or the new one."""

from __future__ import annotations

import functools
import json
import os
import platform
import resource
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("padapter", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy", "pillow")


def provenance() -> dict[str, Any]:
    """Package versions and hardware of this process, as plain values."""
    import torch

    versions = {"python": platform.python_version(), **package_versions(PACKAGES)}
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    hardware = {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }
    return {"versions": versions, "hardware": hardware}


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of installed packages by name."""
    versions = {}
    for name in names:
        try:
            versions[name] = _version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    return versions


@functools.cache  # reading a package's metadata is slow, and a run asks for thirty
def _version(name: str) -> str:
    return metadata.version(name)


def peak_memory() -> dict[str, int]:
    """Most memory this process has held so far, in bytes: resident, and on the GPU if there is one."""
    import torch

    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak["gpu_bytes"] = torch.cuda.max_memory_allocated()
    return peak


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=_plain) + "\n" for row in rows))


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    return str(value)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
