"""Predictions and scores, and results that say where they come from."""

from __future__ import annotations

from padapter.evaluation.evaluate import Evaluation, evaluate, evaluate_source, predict_source
from padapter.evaluation.predict import Asking, predict_rows, resolve_asking
from padapter.evaluation.processes import join_processes
from padapter.evaluation.results import peak_memory, provenance, write_json
from padapter.evaluation.source import Source, load_source

__all__ = [
    "Asking",
    "Evaluation",
    "Source",
    "evaluate",
    "evaluate_source",
    "join_processes",
    "load_source",
    "peak_memory",
    "predict_rows",
    "predict_source",
    "provenance",
    "resolve_asking",
    "write_json",
]
