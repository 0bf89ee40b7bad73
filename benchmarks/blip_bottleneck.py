"""As `blip_step`, for the bottleneck form of the p-adapter, beside the adapter at the same places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.blip_step import compared

SIDES = ("lora", "adapter", "p-adapter:form=bottleneck")
PAIRS = (("adapter", "p-adapter:form=bottleneck"),)


def run(quick: bool = False) -> Iterator[dict[str, Any]]:
    """All sides against LoRA, and the pair that has a target."""
    return compared(SIDES, PAIRS, quick)
