"""Measurements. Ratios of medians, both sides interleaved in one process; results are JSON under ``results/``."""
