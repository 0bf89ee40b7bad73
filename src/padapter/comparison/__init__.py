"""Comparing methods: plan, run, tune, record, report."""
