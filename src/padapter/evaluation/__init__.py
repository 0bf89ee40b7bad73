"""Predictions and scores, and results that say where they come from.

The names here are imported when they are first asked for: what is looked at before a model is loaded needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from padapter.evaluation.asking import Asking, resolve_asking
    from padapter.evaluation.evaluating import Evaluation, evaluate, evaluate_source, predict_source
    from padapter.evaluation.predict import predict_rows
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

_HOMES = {
    "asking": ("Asking", "resolve_asking"),
    "evaluating": ("Evaluation", "evaluate", "evaluate_source", "predict_source"),
    "predict": ("predict_rows",),
    "processes": ("join_processes",),
    "results": ("peak_memory", "provenance", "write_json"),
    "source": ("Source", "load_source"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"padapter.evaluation.{home}"), name)
    raise AttributeError(f"module 'padapter.evaluation' has no attribute {name!r}")
