"""Numbers that are collected while data pass by: memory does not grow with them, and batches leave no trace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from padapter.diagnose.graphs import Array


@dataclass(frozen=True)
class Statistic:
    """Mean and spread over the query nodes of a data set.

    Attributes:
        mean: (H, ...), per head; NaN where nothing was counted.
        std: (H, ...), standard deviation over the nodes (of the population).
        count: (H, ...), how many nodes were counted.
    """

    mean: Array
    std: Array
    count: NDArray[np.int64]

    @property
    def standard_error(self) -> Array:
        """Of the mean, (H, ...); what was counted must be independent: texts are, the nodes of one text are not."""
        return np.asarray(np.where(self.count > 1, self.std / np.sqrt(np.maximum(self.count - 1, 1)), np.nan))

    @property
    def overall(self) -> Array:
        """Mean over nodes and heads, (...)."""
        total = self.count.sum(axis=0)
        weighted = (np.where(self.count > 0, self.mean, 0.0) * self.count).sum(axis=0)
        return np.asarray(np.divide(weighted, total, out=np.full(np.shape(total), np.nan), where=total > 0))


class Running:
    """Mean and variance of a stream, by the update of Chan, Golub and LeVeque (1979), of which Welford's is a case.

    Args:
        shape: of one value, (H, ...).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = np.zeros(shape, dtype=np.int64)
        self.mean = np.zeros(shape)
        self.squares = np.zeros(shape)  # sum of squared differences from the mean

    def add(self, values: Array) -> None:
        """Add values (H, n, ...) of n nodes; NaN stands for a node that has no value."""
        there = ~np.isnan(values)
        count = there.sum(axis=1)
        total = self.count + count
        mean = np.where(there, values, 0.0).sum(axis=1) / np.maximum(count, 1)
        squares = np.where(there, np.square(values - mean[:, None]), 0.0).sum(axis=1)
        apart = mean - self.mean
        share = count / np.maximum(total, 1)
        self.squares += squares + np.square(apart) * self.count * share
        self.mean += apart * share
        self.count = total

    def result(self) -> Statistic:
        """What was found so far."""
        mean = np.where(self.count > 0, self.mean, np.nan)
        return Statistic(
            mean, np.sqrt(np.where(self.count > 0, self.squares, np.nan) / np.maximum(self.count, 1)), self.count
        )


class Sample:
    """A uniform sample of a stream, without replacement: the items with the smallest random keys.

    Which ones these are depends on the keys alone, not on how the stream is cut into batches.

    Args:
        size: at most so many items are kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.keys = np.empty(0)
        self.items = np.empty((0, 0), dtype=np.float32)

    def add(self, keys: Array, items: NDArray[np.float32]) -> None:
        """Offer items (n, ...) with their keys (n,), drawn from [0, 1)."""
        if len(self.keys) == self.size:  # most have no chance
            chance = keys < (self.keys[-1] if self.size else 0.0)
            keys, items = keys[chance], items[chance]
        if not len(keys):
            return
        keys = np.concatenate([self.keys, keys])
        items = np.concatenate([self.items, items]) if len(self.keys) else items
        kept = keys.argsort(kind="stable")[: self.size]
        self.keys, self.items = keys[kept], items[kept]


def random_keys(seed: int, *place: int, count: int) -> Array:
    """Keys (count,) in [0, 1) of the tokens of one item: the same for the same seed and place in the stream."""
    return np.random.default_rng([seed, *place]).random(count)
