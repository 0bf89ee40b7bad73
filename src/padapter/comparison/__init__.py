"""Comparing methods: plan, run, tune, record, report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from padapter.comparison.records import BenchmarkEntry, MethodEntry, Results, RunRecord, read_records

if TYPE_CHECKING:
    from padapter.comparison.orchestrate import Comparison, compare
    from padapter.comparison.recipe import Recipe, read_recipe

__all__ = [
    "BenchmarkEntry",
    "Comparison",
    "MethodEntry",
    "Recipe",
    "Results",
    "RunRecord",
    "compare",
    "read_recipe",
    "read_records",
]

# Loaded when asked for: a report needs neither torch nor the training loop.
_LATER = {"Comparison": "orchestrate", "compare": "orchestrate", "Recipe": "recipe", "read_recipe": "recipe"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
