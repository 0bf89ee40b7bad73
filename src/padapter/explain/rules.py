"""Relevance of tokens for an output, by gradient-weighted attention.

Source: Chefer, Gur, Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
Transformers" (ICCV 2021), whose equation numbers are given here, after "Transformer Interpretability Beyond Attention
Visualization" (CVPR 2021). Pure functions on arrays: nothing about models.

A *stream* is a sequence of tokens: the words, the tokens of a picture. R^sq (tokens of s, tokens of q) says how much
the tokens of s, as they are now, have taken from those that q began with. It starts as the identity within a stream and
as zero between two, and every attention layer, in the order of computation, adds to it.

Where attention goes over several streams at once, one behind the other, they are named as a tuple: R of a
concatenation is the blocks R^sq of its streams, and the rules hold for it as for any stream.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
#: A stream, or several that stand one behind the other.
Streams = str | tuple[str, ...]


def gradient_weighted(weights: Array, gradient: Array) -> Array:
    """Equation (5): ``Abar = E_h[(gradient * A)+]``.

    Args:
        weights: (..., H, N1, N2), attention weights A.
        gradient: of the target with respect to them, of the same shape.

    Returns:
        (..., N1, N2), the mean over heads of the positive part.
    """
    positive: Array = np.clip(weights * gradient, 0.0, None).mean(axis=-3)
    return positive


def normalised(relevance: Array) -> Array:
    """Equations (8)-(9): ``Rbar = Rhat / S + I`` with ``Rhat = R - I`` and S its sums over rows.

    What a token has taken from all tokens counts as much as the token itself. A row of zeros, a token that has taken
    nothing, stays one.

    Args:
        relevance: (N, N), R of a stream to itself.

    Returns:
        (N, N).
    """
    identity = np.eye(len(relevance))
    return distributed(relevance - identity) + identity


def distributed(relevance: Array) -> Array:
    """(N1, N2) divided by its sums over rows; rows of zeros stay zero."""
    total = relevance.sum(axis=-1, keepdims=True)
    shares: Array = np.divide(relevance, total, out=np.zeros_like(relevance), where=total > 0)
    return shares


class Relevance:
    """R^sq of every pair of streams.

    Args:
        sizes: number of tokens of each stream.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self._maps: dict[tuple[str, str], Array] = {}

    def of(self, s: Streams, q: Streams) -> Array:
        """R^sq, (tokens of s, tokens of q)."""
        return np.block([[self._block(one, other) for other in _named(q)] for one in _named(s)])

    def attend_self(self, s: Streams, attention: Array, own: Array | None = None) -> None:
        """A layer of self-attention, equations (6)-(7): ``R^sq = R^sq + Abar R^sq`` for every q, s itself included.

        A token's own share is attention to itself, by way of its query features: it is added to the diagonal.

        Args:
            s: the stream; of a concatenation every token reads from every stream in it.
            attention: (N, N), Abar.
            own: (N,), the same of the query nodes' own shares; None where there is none.
        """
        taken = attention if own is None else attention + np.diag(own)
        # Tokens of s that have taken nothing from q have rows of zeros, and so have what is added to them.
        self._keep(s, {q: found + taken @ found for q in self._sources(s) for found in [self.of(s, q)]})

    def attend_cross(self, s: Streams, q: Streams, attention: Array, own: Array | None = None) -> None:
        """A layer of cross-attention, equations (10)-(11).

        ``R^sq = R^sq + (Rbar^ss)^T Abar Rbar^qq`` and ``R^ss = R^ss + Abar R^qs``. What q has taken from a third
        stream goes the way of R^qs. A token's own share is attention of s to itself: equations (6)-(7) with a
        diagonal. All of them see R as it was before the layer.

        In a causal decoder the transpose of (10) leaves the row of the last token alone but for its own factor: what
        earlier tokens read from q reaches it by (7), in later layers of self-attention.

        Args:
            s: the stream of the queries.
            q: the stream of keys and values.
            attention: (N1, N2), Abar.
            own: (N1,), the same of the query nodes' own shares; None where there is none.
        """
        added = {third: attention @ self.of(q, third) for third in self._sources(q) if third not in _named(q)}
        direct = normalised(self.of(s, s)).T @ attention @ normalised(self.of(q, q))
        added |= zip(_named(q), np.split(direct, self._ends(q), axis=1), strict=True)
        kept = np.ones(len(attention)) if own is None else 1 + own
        sources = dict.fromkeys([*self._sources(s), *added])
        self._keep(s, {third: kept[:, None] * self.of(s, third) + added.get(third, 0.0) for third in sources})

    def splice(self, s: str, q: str, places: Array | NDArray[np.int64], mixing: Array) -> None:
        """Tokens of q stand in s, at some places, as its input: from now on R^s. reaches through them.

        A decoder-only model reads a picture like this. What a token of s has taken from the place k, it has taken from
        the tokens of q that this place was made of: by the share that each has in it, and by what these had taken
        from others. Call it after the layers of s.

        Args:
            s: the stream of the sequence.
            q: the stream whose tokens are in it.
            places: (n,), where.
            mixing: (n, tokens of q), shares of the tokens of q in each place; rows sum to 1.
        """
        taken = self.of(s, s)[:, np.asarray(places, dtype=np.int64)] @ mixing
        for (_, third), found in self._from(q).items():
            through = normalised(found) if third == q else distributed(found)
            self._maps[s, third] = self.of(s, third) + taken @ through

    def _from(self, s: str) -> dict[tuple[str, str], Array]:
        """R^sq for every q of which s has taken anything, s itself first."""
        return {(s, q): self.of(s, q) for q in self._sources(s)}

    def _block(self, s: str, q: str) -> Array:
        found = self._maps.get((s, q))
        if found is not None:
            return found
        return np.eye(self.sizes[s]) if s == q else np.zeros((self.sizes[s], self.sizes[q]))

    def _sources(self, s: Streams) -> list[str]:
        """The streams of which s has taken anything, itself first."""
        return list(dict.fromkeys([*_named(s), *(q for one, q in self._maps if one in _named(s))]))

    def _ends(self, s: Streams) -> Array:
        """Where the streams of a concatenation end, but for the last."""
        return np.cumsum([self.sizes[one] for one in _named(s)])[:-1]

    def _keep(self, s: Streams, changed: Mapping[str, Array]) -> None:
        """Remember new R^sq (tokens of s, tokens of q), by q."""
        for q, rows in changed.items():
            self._maps |= {(one, q): part for one, part in zip(_named(s), np.split(rows, self._ends(s)), strict=True)}


def _named(streams: Streams) -> tuple[str, ...]:
    return (streams,) if isinstance(streams, str) else streams
