"""Comparing methods: plan, run, tune, record, report."""

from __future__ import annotations

from padapter.comparison.compare import Comparison, compare
from padapter.comparison.recipe import Recipe, read_recipe
from padapter.comparison.records import BenchmarkEntry, MethodEntry, Results, RunRecord, read_records

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
