"""Comparing methods: plan, run, tune, record, report."""

from __future__ import annotations

# from padapter.comparison.compare import Comparison, compare
from padapter.comparison.recipe import Recipe, read_recipe
from padapter.comparison.records import BenchmarkEntry, MethodEntry, Results, RunRecord, read_records

__all__ = [
    "BenchmarkEntry",
    "MethodEntry",
    "Recipe",
    "Results",
    "RunRecord",
    "read_recipe",
    "read_records",
]
