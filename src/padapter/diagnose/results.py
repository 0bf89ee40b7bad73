"""What a diagnosis found: plain arrays with documented shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padapter.diagnose.graphs import TENTHS, Array
from padapter.diagnose.streams import Statistic

#: The two states of a model.
STATES = ("before", "after")


@dataclass(frozen=True)
class Weights:
    """Numbers of one set of weights on the attention graphs of one layer; means over query nodes, per head.

    Attributes:
        heterophily: (H,), see `padapter.diagnose.graphs.heterophily`.
        preference: (1,), heterophily minus that of random weights, counted per text or picture (the mean over its nodes
            and heads), so that ``standard_error`` says how far to trust it.
        entropy: (H,), in nats.
        by_distance: (H, 10), share of the weight on each tenth of the value nodes, the nearest first.
        by_offset: (H, 8), share of the weight by token offset (`padapter.diagnose.graphs.OFFSET_LABELS`); None in a
            cross-attention, and where keys are no tokens of the text (a prefix).
    """

    heterophily: Statistic
    preference: Statistic
    entropy: Statistic
    by_distance: Statistic
    by_offset: Statistic | None


@dataclass(frozen=True)
class Points:
    """A sample of the nodes of one layer, as the projected features of equation (6); the same tokens in both states.

    Attributes:
        query: (n, D), query nodes, all heads together, in coordinates that have the distances of ``F = [Q; V] Wo``.
        value: (m, D), value nodes.
        query_heads: (H, n, w), the same query nodes head by head.
        value_heads: (H, m, w).
    """

    query: NDArray[np.float32]
    value: NDArray[np.float32]
    query_heads: NDArray[np.float32]
    value_heads: NDArray[np.float32]


@dataclass(frozen=True)
class State:
    """One layer before or after adaptation.

    Attributes:
        graphs: how many attention graphs were seen.
        random: (H,), heterophily if the weights were dealt at random: what `Weights.heterophily` is compared with.
        plain: softmax of the scores.
        calibrated: weights after message passing; None where no p-adapter is at work.
        divergence: (H,), of calibrated from plain shares, in nats; None likewise.
        own: (H,), the query node's own share; None likewise.
        points: sampled nodes; None if none were asked for.
    """

    graphs: int
    random: Statistic
    plain: Weights
    calibrated: Weights | None = None
    divergence: Statistic | None = None
    own: Statistic | None = None
    points: Points | None = None

    @property
    def effective(self) -> Weights:
        """The weights that the model uses: calibrated ones where there are some, or else plain ones."""
        return self.plain if self.calibrated is None else self.calibrated


@dataclass(frozen=True)
class Exponent:
    """p or mu of one layer.

    Attributes:
        start: its value before training.
        value: (1,), or (H,) with ``per_head``: what the layer computes with.
        trained: whether training could change it.
        stored: (1,) or (H,), the parameter itself where that is out of range and counts as the nearest allowed value;
            None otherwise.
    """

    start: float
    value: Array
    trained: bool
    stored: Array | None = None


@dataclass(frozen=True)
class Layer:
    """One attention module.

    Attributes:
        name: its full name in the base model.
        label: for people, e.g. "layer 3, cross-attention".
        part: part of the model it belongs to, one of `padapter.architectures.PARTS`.
        cross: whether its keys and values come from other tokens than its queries.
        index: number of its layer; None if its name has none.
        heads: H.
        before: without the adapter.
        after: with it; None for a model that is not adapted.
        exponents: "p" and "mu" where the layer has them.
    """

    name: str
    label: str
    part: str
    cross: bool
    index: int | None
    heads: int
    before: State
    after: State | None
    exponents: dict[str, Exponent] = field(default_factory=dict)

    def gain(self, by: str = "distance") -> tuple[Array | None, Array | None]:
        """Which value nodes gained weight: changes of their shares, means over nodes and heads.

        Args:
            by: "distance", (10,) by tenths, or "offset", (8,).

        Returns:
            What calibration changes in the adapted model (calibrated minus plain shares), and what adaptation changes
            altogether (shares that are used after, minus those before); None where there is no such change.
        """
        name = f"by_{by}"
        old: Statistic | None = getattr(self.before.plain, name)
        if self.after is None:
            return None, None
        plain: Statistic | None = getattr(self.after.plain, name)
        used: Statistic | None = getattr(self.after.effective, name)
        calibration = (
            None if self.after.calibrated is None or used is None or plain is None else used.overall - plain.overall
        )
        adaptation = None if used is None or old is None else used.overall - old.overall
        return calibration, adaptation


@dataclass(frozen=True)
class Diagnosis:
    """What was found in all layers.

    Attributes:
        title: run or model.
        model: the base model.
        method: how it was adapted; None if it is not.
        data: name and split of the data.
        rows: how many rows were read.
        seed: of the sample of rows and nodes.
        layers: in the order of the model.
        notes: what does not apply, and why.
    """

    title: str
    model: str
    method: str | None
    data: str
    rows: int
    seed: int
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()

    def layer(self, name: str) -> Layer:
        """The layer of this name or label.

        Raises:
            KeyError: there is none; the message lists them.
        """
        for layer in self.layers:
            if name in (layer.name, layer.label):
                return layer
        raise KeyError(f"no layer {name!r}; there are: {', '.join(layer.label for layer in self.layers)}")

    def numbers(self) -> list[dict[str, Any]]:
        """Every number as one record: layer, state, weights, quantity, group, head, mean, std and count.

        ``head`` is None for the mean over heads. ``group`` is the tenth (1 to 10) or offset of a profile; of p and mu
        "used", and "stored" for a parameter that is out of range and counts as the nearest allowed value.
        """
        return [record for layer in self.layers for record in _records(layer)]


def _records(layer: Layer) -> list[dict[str, Any]]:
    about = {
        "layer": layer.name,
        "part": layer.part,
        "attention": "cross" if layer.cross else "self",
        "index": layer.index,
    }
    found: list[dict[str, Any]] = []
    for name, exponent in layer.exponents.items():
        found.append(_record(name, exponent.start) | about | {"state": "start"})
        several = len(exponent.value) > 1
        for kind, values in (("used", exponent.value), ("stored", exponent.stored)):
            for head, value in enumerate(() if values is None else values):
                record = _record(name, float(value), group=kind, head=head if several else None)
                found.append(record | about | {"state": "after"})
    for state_name in STATES:
        state: State | None = getattr(layer, state_name)
        if state is None:
            continue
        context = about | {"state": state_name}
        for name, statistic in (
            ("random heterophily", state.random), ("divergence", state.divergence), ("own share", state.own)
        ):  # fmt: skip
            found += [record | context for record in _expanded(name, statistic)]
        for kind, weights in (("plain", state.plain), ("calibrated", state.calibrated)):
            for name, statistic in {} if weights is None else vars(weights).items():
                found += [record | context | {"weights": kind} for record in _expanded(name, statistic)]
    return found


def _expanded(name: str, statistic: Statistic | None) -> list[dict[str, Any]]:
    from padapter.diagnose.graphs import OFFSET_LABELS

    if statistic is None:
        return []
    groups: tuple[str | None, ...] = (None,)
    if statistic.mean.ndim == 2:
        groups = OFFSET_LABELS if name == "by_offset" else tuple(str(tenth + 1) for tenth in range(TENTHS))
    found = []
    for place, group in enumerate(groups):
        at = (Ellipsis, place) if group is not None else (Ellipsis,)
        label = name.replace("_", " ")
        counts = statistic.count[at]
        found.append(_record(label, float(np.asarray(statistic.overall)[at]), group=group, count=int(counts.sum())))
        if len(counts) == 1:  # not per head
            found[-1]["std"] = float(statistic.std[at][0])
            continue
        for head, (mean, std, count) in enumerate(zip(statistic.mean[at], statistic.std[at], counts, strict=True)):
            found.append(_record(label, float(mean), group=group, head=head, std=float(std), count=int(count)))
    return found


def _record(
    quantity: str,
    mean: float,
    *,
    group: str | None = None,
    head: int | None = None,
    std: float | None = None,
    count: int | None = None,
) -> dict[str, Any]:
    return {
        "state": None, "weights": None, "quantity": quantity, "group": group, "head": head,
        "mean": mean, "std": std, "count": count,
    }  # fmt: skip
