"""One training loop for all methods and tasks, on transformers' ``Seq2SeqTrainer``."""

from __future__ import annotations

from padapter.training.batches import Collator, Rows
from padapter.training.run import TrainReport, train
from padapter.training.trainer import AdapterTrainer

__all__ = ["AdapterTrainer", "Collator", "Rows", "TrainReport", "train"]
