"""Measurements: ratios of medians, the sides in turn in the same run; results are JSON under ``results/``.

A benchmark is a module with ``run(quick)``, a generator of cases, and one line in `registry.BENCHMARKS`.
"""
