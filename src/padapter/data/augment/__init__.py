"""Training pictures changed at random, the same way again for the same seed, epoch and row."""

from __future__ import annotations

from padapter.data.augment.base import Chance, Operation
from padapter.data.augment.mirror import mirror_word
from padapter.data.augment.operations import NAMED, NONE, OPERATIONS, PUBLISHED, RANDAUGMENT
from padapter.data.augment.pipeline import Augmentation, count_mirror_words, parse_augmentation

__all__ = [
    "NAMED",
    "NONE",
    "OPERATIONS",
    "PUBLISHED",
    "RANDAUGMENT",
    "Augmentation",
    "Chance",
    "Operation",
    "count_mirror_words",
    "mirror_word",
    "parse_augmentation",
]
