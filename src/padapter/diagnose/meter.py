"""Everything that is counted on the graphs of one layer in one state of the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from padapter.diagnose import graphs
from padapter.diagnose.graphs import OFFSET_LABELS, TENTHS, Array, NodeGraph
from padapter.diagnose.results import Points, State, Weights
from padapter.diagnose.streams import Running, Sample

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Factors:
    """Maps from head features to coordinates with the distances behind the output projection.

    Attributes:
        heads: (H, dh, w), per head.
        joint: (H * dh, D), all heads together.
    """

    heads: Array
    joint: Array


class WeightMeter:
    """Collects `Weights` of layers with ``heads`` heads."""

    def __init__(self, heads: int) -> None:
        self.heterophily = Running((heads,))
        self.preference = Running((1,))
        self.entropy = Running((heads,))
        self.by_distance = Running((heads, TENTHS))
        self.by_offset = Running((heads, len(OFFSET_LABELS)))
        self.has_offsets = True

    def add(self, weights: Array, graph: NodeGraph, random: Array) -> None:
        """Count the weights (H, N1, N2) of a graph, whose heterophily by chance is ``random`` (H, N1)."""
        heterophily = graphs.heterophily(weights, graph.similarity)
        self.heterophily.add(heterophily)
        apart = (heterophily - random)[~np.isnan(heterophily)]
        self.preference.add(np.array([[apart.mean() if len(apart) else np.nan]]))
        self.entropy.add(graphs.entropy(weights))
        self.by_distance.add(graphs.profile(weights, graph.tenth, TENTHS))
        if graph.offset is None:
            self.has_offsets = False
        else:
            self.by_offset.add(graphs.profile(weights, graph.offset, len(OFFSET_LABELS)))

    def result(self) -> Weights:
        """What was found so far."""
        return Weights(
            self.heterophily.result(),
            self.preference.result(),
            self.entropy.result(),
            self.by_distance.result(),
            self.by_offset.result() if self.has_offsets else None,
        )


class Meter:
    """Collects a `State` of one layer.

    Args:
        heads: H.
        points: how many query nodes, and how many value nodes, to keep.
    """

    def __init__(self, heads: int, points: int) -> None:
        self.graphs = 0
        self.random = Running((heads,))
        self.divergence = Running((heads,))
        self.own = Running((heads,))
        self.plain = WeightMeter(heads)
        self.calibrated: WeightMeter | None = None
        self.queries, self.values = Sample(points), Sample(points)

    def add(self, graph: NodeGraph) -> None:
        """Count a graph."""
        self.graphs += 1
        random = graphs.random_heterophily(graph.allowed, graph.similarity)
        self.random.add(random)
        self.plain.add(graph.plain, graph, random)
        if graph.calibrated is None:
            return
        if self.calibrated is None:
            self.calibrated = WeightMeter(len(graph.plain))
        self.calibrated.add(graph.calibrated, graph, random)
        self.divergence.add(graphs.divergence(graph.calibrated, graph.plain))
        if graph.own is not None:
            self.own.add(graph.own)

    def result(self, factors: Factors) -> State:
        """What was found so far."""
        calibrated = None if self.calibrated is None else self.calibrated.result()
        points = None
        if self.queries.size and len(self.queries.keys) and len(self.values.keys):
            joint = [_joined(sample.items, factors) for sample in (self.queries, self.values)]
            heads = [_by_head(sample.items, factors) for sample in (self.queries, self.values)]
            points = Points(joint[0], joint[1], heads[0], heads[1])
        return State(
            self.graphs,
            self.random.result(),
            self.plain.result(),
            calibrated,
            None if calibrated is None else self.divergence.result(),
            None if calibrated is None else self.own.result(),
            points,
        )


def _joined(nodes: Float32, factors: Factors) -> Float32:
    """Nodes (n, H, dh) behind the projection of all heads, (n, D)."""
    return np.asarray(nodes.reshape(len(nodes), -1) @ factors.joint, dtype=np.float32)


def _by_head(nodes: Float32, factors: Factors) -> Float32:
    """Nodes (n, H, dh) behind the projection of each head, (H, n, w)."""
    return np.asarray(nodes.swapaxes(0, 1) @ factors.heads, dtype=np.float32)
