"""What the fused operators take and give, whichever kernels compute them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from padapter.functional.fused.dropout import Dropout


class Inputs(NamedTuple):
    """Arguments of ``padapter::p_laplacian_forward``, in their order; shapes are in `operators`."""

    query: Tensor
    key: Tensor
    value: Tensor
    node_query: Tensor | None
    near_query: Tensor | None
    near_value: Tensor | None
    p: Tensor
    restart: Tensor | None
    metric: Tensor | None
    mask: Tensor | None
    seed: Tensor | None
    scale: float
    causal: bool
    distances: bool
    relative: float
    least: float
    dropout_p: float

    def differentiable(self) -> tuple[Tensor | None, ...]:
        """What `Gradients` are of."""
        nodes = (self.query, self.key, self.value, self.node_query, self.near_query, self.near_value)
        return (*nodes, self.p, self.restart)

    def resolved(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Query, key, value; query nodes, if there is a restart; features whose distances are taken, if any are."""
        node = self.query if self.node_query is None else self.node_query
        x = node if self.near_query is None else self.near_query
        y = self.value if self.near_value is None else self.near_value
        near = (x, y) if self.distances else (None, None)
        return self.query, self.key, self.value, None if self.restart is None else node, *near

    def behind_metric(self) -> tuple[Tensor | None, Tensor | None]:
        """The last two of `resolved`, times R if there is one: (B, H, N1, dh) and (B, H or Hkv, N2, dh)."""
        *_, x, y = self.resolved()
        if self.metric is None or x is None or y is None:
            return x, y
        heads = self.metric.shape[0]
        if y.shape[1] < heads:
            y = y.repeat_interleave(heads // y.shape[1], dim=1)
        return x.float() @ self.metric, y.float() @ self.metric

    def dropout(self) -> Dropout | None:
        """Which weights are dropped, if any are."""
        return None if self.seed is None else Dropout.of(self.seed, self.dropout_p)


class Statistics(NamedTuple):
    """What a forward pass leaves for its backward pass, in float32. Sizes are of native kernels with distances only.

    Attributes:
        row_max: (B, H, N1), of the scores.
        row_log: (B, H, N1), log of the sum of exp(score - row_max).
        log_total: (B, H, N1), log of what a row is divided by.
        x_sizes: (B, H, N1), squares of the features whose distances are taken, behind the metric.
        y_sizes: (B, H, N2), the same of value nodes.
    """

    row_max: Tensor
    row_log: Tensor
    log_total: Tensor
    x_sizes: Tensor
    y_sizes: Tensor

    @classmethod
    def empty(cls, query: Tensor, keys: int, *, sizes: bool) -> Statistics:
        """Without content, for a query (B, H, N1, dk)."""
        B, H, N1, _ = query.shape
        shapes = [(B, H, N1)] * 3 + ([(B, H, N1), (B, H, keys)] if sizes else [(0,), (0,)])
        return cls(*(query.new_empty(shape, dtype=torch.float32) for shape in shapes))


class Gradients(NamedTuple):
    """Gradients of the first inputs, in their order, None where there is none.

    Those of key, value and near_value may be one per query head: (B, H, N2, .).
    """

    query: Tensor
    key: Tensor | None
    value: Tensor | None
    node_query: Tensor | None
    near_query: Tensor | None
    near_value: Tensor | None
    p: Tensor
    restart: Tensor | None

    def gathered(self, inputs: Inputs) -> Gradients:
        """Turn gradients of what kernels see into those of inputs: in front of R, and of what each stands for."""
        query, value, node, x, y = self.query, self.value, self.node_query, self.near_query, self.near_value
        if inputs.metric is not None:
            x, y = (None if it is None else it.float() @ inputs.metric.mT for it in (x, y))
        if inputs.near_value is None and value is not None and y is not None:
            value, y = value + y, None
        if inputs.near_query is None and x is not None:
            node, x = x if node is None else node + x, None
        if inputs.node_query is None and node is not None:
            query, node = query + node, None
        return self._replace(query=query, value=value, node_query=node, near_query=x, near_value=y)
