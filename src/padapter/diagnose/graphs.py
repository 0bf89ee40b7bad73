"""What is measured on one attention graph: arrays in, numbers per query node out.

The graph is the one of equations (5)-(6) (docs/mathematics.md): query nodes, value nodes, and an edge of weight M_ij
between query i and every value j that it may attend to.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: How many groups of equal size the value nodes of a query are sorted into, from the nearest to the farthest.
TENTHS = 10
#: Ends of the groups of token offsets |i - j|: 0, 1, 2, 3-4, 5-8, ..., 33 and more.
OFFSETS = (0, 1, 2, 4, 8, 16, 32)
OFFSET_LABELS = ("0", "1", "2", "3-4", "5-8", "9-16", "17-32", "33+")
#: Stands for a plain weight that float32 has rounded to 0, in logarithms: its smallest normal number. (NumPy's own
#: constants come out as 0 where processors flush denormal numbers, as the command line tells them to.)
_LEAST = 2.0**-126


@dataclass(frozen=True)
class NodeGraph:
    """The attention graph of one text or picture, without padding; everything float64.

    Attributes:
        query: (H, N1, w), features of the query nodes, in coordinates in which their distances are those behind the
            output projection (`padapter.functional.metric_factor`).
        value: (H, N2, w), those of the value nodes.
        allowed: (H or 1, N1, N2), which value nodes a query may attend to; at least one for each query.
        plain: (H, N1, N2), softmax of the scores.
        places: (N1,), which value node is each query's own token, in a self-attention; None in a cross-attention.
        calibrated: (H, N1, N2), weights after message passing, or None without a p-adapter.
        own: (H, N1), the query node's own share, or None.
    """

    query: Array
    value: Array
    allowed: Mask
    plain: Array
    places: NDArray[np.int64] | None = None
    calibrated: Array | None = None
    own: Array | None = None

    @cached_property
    def similarity(self) -> Array:
        """Cosine of the angle between query and value node, (H, N1, N2); 0 where a node is zero."""
        lengths = [np.linalg.norm(nodes, axis=-1, keepdims=True) for nodes in (self.query, self.value)]
        query, value = (
            np.divide(nodes, length, out=np.zeros_like(nodes), where=length > 0)
            for nodes, length in zip((self.query, self.value), lengths, strict=True)
        )
        return query @ value.swapaxes(-1, -2)

    @cached_property
    def distance(self) -> Array:
        """Euclidean distance between query and value node, (H, N1, N2)."""
        squares = [np.square(nodes).sum(axis=-1) for nodes in (self.query, self.value)]
        product = self.query @ self.value.swapaxes(-1, -2)
        return np.sqrt(np.maximum(squares[0][:, :, None] + squares[1][:, None, :] - 2 * product, 0.0))

    @cached_property
    def tenth(self) -> NDArray[np.int64]:
        """Which tenth of a query's allowed value nodes a node is in by distance, 0 the nearest; (H, N1, N2).

        The node of rank r among n is in tenth ``floor(10 (r + 1/2) / n)``. -1 where a node is not allowed.
        """
        allowed = np.broadcast_to(self.allowed, self.distance.shape)
        order = np.where(allowed, self.distance, np.inf).argsort(axis=-1, kind="stable")
        counts = allowed.sum(axis=-1, keepdims=True)
        ranks = np.arange(allowed.shape[-1])
        sorted_tenth = np.where(ranks < counts, ((2 * ranks + 1) * TENTHS) // (2 * counts), -1)
        found = np.empty_like(sorted_tenth)
        np.put_along_axis(found, order, sorted_tenth, axis=-1)
        return found

    @cached_property
    def offset(self) -> NDArray[np.int64] | None:
        """Group of the token offset |i - j| by `OFFSETS`, (1, N1, N2); None in a cross-attention."""
        if self.places is None:
            return None
        offsets = np.abs(self.places[:, None] - np.arange(self.plain.shape[-1]))
        return np.searchsorted(OFFSETS, offsets)[None]


def shares(weights: Array) -> Array:
    """Weights (..., N2) as shares of their sum; NaN where all are 0, so that there is nothing to share."""
    total = weights.sum(axis=-1, keepdims=True)
    return np.divide(weights, total, out=np.full_like(weights, np.nan), where=total > 0)


def heterophily(weights: Array, similarity: Array) -> Array:
    """How unlike the nodes are that an edge joins, weighted by the edges: (H, N1), from 0 (alike) to 2 (opposite).

    One minus the generalised edge homophily of Jin et al. (RAW-GNN, IJCAI 2022), the mean cosine similarity of joined
    nodes, with each edge of a query counted by its share of the query's weight.

    Args:
        weights: (H, N1, N2).
        similarity: (H, N1, N2).
    """
    return 1 - (shares(weights) * similarity).sum(axis=-1)


def random_heterophily(allowed: Mask, similarity: Array) -> Array:
    """`heterophily` if each query's weights were dealt to its allowed value nodes at random: its expectation, (H, N1).

    Over all permutations of a row of weights every node gets the same mean share, whatever the weights.

    Args:
        allowed: (H or 1, N1, N2).
        similarity: (H, N1, N2).
    """
    return heterophily(np.broadcast_to(allowed, similarity.shape).astype(np.float64), similarity)


def entropy(weights: Array) -> Array:
    """Entropy of each query's shares in nats, (H, N1): 0 on one node, log n evenly over n."""
    found = shares(weights)
    return -np.where(found == 0, 0.0, found * np.log(np.where(found == 0, 1.0, found))).sum(axis=-1)


def divergence(calibrated: Array, plain: Array) -> Array:
    """Kullback-Leibler divergence of calibrated shares from plain ones in nats, (H, N1); 0 where they are equal.

    Over the value nodes alone: calibrated weights leave room for the query's own share, which plain attention does not
    have, and are taken as shares of their sum.

    Args:
        calibrated: (H, N1, N2).
        plain: (H, N1, N2).
    """
    new, old = shares(calibrated), np.maximum(shares(plain), _LEAST)
    return np.where(new == 0, 0.0, new * np.log(np.where(new == 0, 1.0, new) / old)).sum(axis=-1)


def profile(weights: Array, group: NDArray[np.int64], groups: int) -> Array:
    """How a query's weight is spread over groups of value nodes, as shares: (H, N1, groups).

    Args:
        weights: (H, N1, N2).
        group: (H or 1, N1, N2), from -1, which is left out, to ``groups`` - 1.
        groups: how many there are.
    """
    found, group = shares(weights), np.broadcast_to(group, weights.shape)
    return np.stack([np.where(group == index, found, 0.0).sum(axis=-1) for index in range(groups)], axis=-1)
