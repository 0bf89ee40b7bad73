"""One training loop for all methods and tasks, on transformers' ``Seq2SeqTrainer``.

The names here are imported when they are first asked for: what is looked at before a model is loaded needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from padapter.training.batches import Collator, Rows
    from padapter.training.run import TrainReport, train
    from padapter.training.trainer import AdapterTrainer

__all__ = ["AdapterTrainer", "Collator", "Rows", "TrainReport", "train"]

_HOMES = {"Collator": "batches", "Rows": "batches", "TrainReport": "run", "train": "run", "AdapterTrainer": "trainer"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
