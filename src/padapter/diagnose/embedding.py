"""The sampled nodes of a layer in the plane, by t-SNE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padapter.diagnose.results import STATES, Layer, Points
from padapter.errors import UserError

PERPLEXITY = 30.0
#: Fewer nodes make no map.
LEAST = 8


@dataclass(frozen=True)
class Map:
    """Nodes in the plane; all of one map, so that places can be compared.

    Attributes:
        query: state ("before", "after") -> (n, 2), query nodes.
        value: state -> (m, 2), value nodes.
    """

    query: dict[str, NDArray[np.float64]]
    value: dict[str, NDArray[np.float64]]


def check_tsne() -> Any:
    """The class that computes t-SNE.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as problem:
        raise UserError(
            'maps of query and value nodes need scikit-learn: pip install "padapter[explain]"; or leave the maps out '
            "with --points 0"
        ) from problem
    return TSNE


def embed(layer: Layer, *, head: int | None = None, most: int | None = None, seed: int = 0) -> Map:
    """Map the sampled nodes of a layer, before and after together.

    t-SNE (van der Maaten and Hinton 2008) as scikit-learn computes it, started from the principal components, with a
    perplexity of 30, or a third of the number of nodes if that is less.

    Args:
        layer: with sampled nodes.
        head: one head's features; None for all heads together.
        most: at most this many query nodes, and value nodes, of what was sampled; None for all.
        seed: of the optimisation.

    Returns:
        The map; the same on the same machine for the same nodes and seed.

    Raises:
        UserError: no nodes were sampled, too few, there is no such head, or scikit-learn is not installed.
    """
    if head is not None and not 0 <= head < layer.heads:
        raise UserError(f"{layer.label} has heads 0 to {layer.heads - 1}, not {head}.")
    groups: list[tuple[str, str, NDArray[np.float32]]] = []
    for state_name in STATES:
        state = getattr(layer, state_name)
        points: Points | None = None if state is None else state.points
        if points is not None:
            for kind in ("query", "value"):
                nodes = getattr(points, kind) if head is None else getattr(points, f"{kind}_heads")[head]
                groups.append((kind, state_name, nodes[:most]))  # in random order, the same in both states
    total = sum(len(nodes) for _, _, nodes in groups)
    if total < LEAST:
        raise UserError(f"{layer.label}: {total} nodes were sampled, and a map needs {LEAST}; raise points or rows.")
    perplexity = min(PERPLEXITY, (total - 1) / 3)
    tsne = check_tsne()(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1)
    places = np.asarray(tsne.fit_transform(np.concatenate([nodes for _, _, nodes in groups])), dtype=np.float64)
    found = Map({}, {})
    start = 0
    for kind, state_name, nodes in groups:
        getattr(found, kind)[state_name] = places[start : start + len(nodes)]
        start += len(nodes)
    return found
