"""What the fused operators take and give, whichever kernels compute them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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
    mask: Tensor | None
    scale: float
    causal: bool
    distances: bool
    relative: float
    least: float

    def resolved(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Query, key, value; query nodes, if there is a restart; features whose distances are taken, if any are."""
        node = self.query if self.node_query is None else self.node_query
        x = node if self.near_query is None else self.near_query
        y = self.value if self.near_value is None else self.near_value
        near = (x, y) if self.distances else (None, None)
        return self.query, self.key, self.value, None if self.restart is None else node, *near


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
        """Gradients of `Inputs.resolved`, each added to that of the input which it stands for."""
        query, value, node, x, y = self.query, self.value, self.node_query, self.near_query, self.near_value
        if inputs.near_value is None and value is not None and y is not None:
            value, y = value + y, None
        if inputs.near_query is None and x is not None:
            node, x = x if node is None else node + x, None
        if inputs.node_query is None and node is not None:
            query, node = query + node, None
        return self._replace(query=query, value=value, node_query=node, near_query=x, near_value=y)
