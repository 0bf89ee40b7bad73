"""``padapter env``: what a report of a problem should hold, and which path the attention takes here and why."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Packages whose versions decide what happens.
PACKAGES = ("padapter", "torch", "transformers", "peft", "triton")


def env_command() -> None:
    """Show versions, devices, which implementation of p-Laplacian attention runs on each and why, and the cache."""
    for line in _lines():
        print(line)


def _lines() -> Iterator[str]:
    import torch

    from padapter.cache import cache_folder
    from padapter.functional.dispatch import VARIABLE, wanted

    kernel = wanted()  # first: a value that does not exist is the error, not the end of a list
    yield f"python        {platform.python_version()} on {platform.platform()}"
    for name in PACKAGES:
        yield f"{name:<13} {_version(name)}"
    yield f"cpu           {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield (
                f"{f'cuda:{index}':<13} {properties.name}, capability {properties.major}.{properties.minor}, "
                f"{properties.total_memory / 2**30:.0f} GiB"
            )
    else:
        yield f"cuda          none ({'torch is built without it' if torch.version.cuda is None else 'no device found'})"
    yield f"cache         {cache_folder()}"
    yield f"p-Laplacian attention, with {VARIABLE}={kernel}:"
    devices = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    for device in devices:
        yield f"  {device!s:<11} {_path(device)}"


def _path(device: torch.device) -> str:
    from padapter.errors import UserError
    from padapter.functional.dispatch import on_device

    try:
        choice = on_device(device)
    except UserError as problem:
        return f"error: {problem}"
    if choice.path != "eager":
        return f"{choice.path}: fused kernels; eager where a call has what they do not cover (docs/kernels.md)"
    return f"eager: {choice.reason}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


__all__ = ["env_command"]
