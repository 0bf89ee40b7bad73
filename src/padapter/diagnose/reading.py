"""From the calls of attention functions to graphs: padding cut away, one text or picture at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from padapter.architectures import AttentionSite
from padapter.diagnose.graphs import Array, Mask, NodeGraph
from padapter.diagnose.meter import Factors, Meter
from padapter.diagnose.results import Exponent, State
from padapter.diagnose.streams import random_keys
from padapter.errors import UserError
from padapter.functional import metric_factor
from padapter.tuners.p_adapter.layer import PAdapterLayer
from padapter.tuners.p_adapter.message_passing import MESSAGE_PASSING
from padapter.tuners.weights import projection_weight

if TYPE_CHECKING:
    from padapter.architectures.recording import AttentionRecord

#: At most so many query nodes of one graph are measured, drawn at random: a picture may have thousands.
QUERIES = 64


@dataclass(frozen=True)
class Sampling:
    """How much is kept.

    Attributes:
        seed: of everything that is drawn.
        points: nodes of each kind per layer.
        queries: query nodes per graph.
    """

    seed: int
    points: int
    queries: int = QUERIES


class LayerReader:
    """Reads the calls of one attention module in one state of the model.

    Args:
        site: the module.
        number: its place among the modules that are read; the same in both states.
        sampling: how much is kept.
    """

    def __init__(self, site: AttentionSite, number: int, sampling: Sampling) -> None:
        self.site = site
        self.number = number
        self.sampling = sampling
        self.factors = factors_of(site)
        self.meter = Meter(site.num_heads, sampling.points)
        self.items = 0

    def read(self, record: AttentionRecord, tokens: torch.Tensor | None) -> None:
        """Count one call.

        Args:
            record: the call.
            tokens: (B, L), 1 where the batch has a token and 0 where it is padded; None where nothing is.

        Raises:
            UserError: if query and value nodes cannot be compared, or several adapters are active at once.
        """
        query, value = record.node_query, record.call.value
        heads = query.shape[1]
        if query.shape[-1] != value.shape[-1] or self.factors.joint.shape[0] != heads * value.shape[-1]:
            raise UserError(
                f"{self.site.name}: query nodes have {query.shape[-1]} features and value nodes {value.shape[-1]}, so "
                "there is no distance between them; leave such layers out with --where."
            )
        if len(record.messages) > 1 or any(message.rows is not None for message in record.messages):
            raise UserError(
                f"{self.site.name}: several p-adapters are active at once; activate the one to look at (set_adapter)."
            )
        message = record.messages[0].step if record.messages else None
        allowed = allowed_pairs(record)
        self_attention = not self.site.cross and query.shape[2] == value.shape[2]
        # Where picture and question stand side by side, the number of tokens between two says nothing.
        one_text = self_attention and (tokens is None or tokens.shape[1] == query.shape[2])
        value = value.repeat_interleave(heads // value.shape[1], dim=1)
        for row in range(query.shape[0]):
            graph_allowed = allowed[row if allowed.shape[0] > 1 else 0]
            present = present_queries(graph_allowed, self_attention, None if tokens is None else tokens[row])
            self._count(
                _numpy(query[row]),
                _numpy(value[row]),
                graph_allowed,
                present,
                one_text,
                _numpy(record.plain.weights[row]),
                None if message is None else _numpy(message.weights[row]),
                None if message is None else _numpy(message.own[row]),
            )

    def result(self) -> State:
        """What was found so far."""
        return self.meter.result(self.factors)

    def _count(
        self,
        query: Array,
        value: Array,
        allowed: Mask,
        present: Mask,
        one_text: bool,
        plain: Array,
        calibrated: Array | None,
        own: Array | None,
    ) -> None:
        """Count the graph of row ``b`` of a batch: query (H, N1, dh), value (H, N2, dh), the others as `NodeGraph`."""
        item, self.items = self.items, self.items + 1
        queries = present.nonzero()[0]
        keys = allowed[:, queries].any(axis=(0, 1)).nonzero()[0]
        if not len(queries) or not len(keys):
            return
        seed, points = self.sampling.seed, self.meter
        chances = random_keys(seed, self.number, item, 0, count=len(queries))
        points.queries.add(chances, query[:, queries].swapaxes(0, 1).astype(np.float32))
        value_chances = random_keys(seed, self.number, item, 1, count=len(keys))
        points.values.add(value_chances, value[:, keys].swapaxes(0, 1).astype(np.float32))
        some = queries[np.sort(chances.argsort(kind="stable")[: self.sampling.queries])]
        edges = np.ix_(np.arange(len(plain)), some, keys)
        self.meter.add(
            NodeGraph(
                query=query[:, some] @ self.factors.heads,
                value=value[:, keys] @ self.factors.heads,
                allowed=allowed[:, some][:, :, keys],
                plain=plain[edges],
                places=np.searchsorted(keys, some) if one_text else None,
                calibrated=None if calibrated is None else calibrated[edges],
                own=None if own is None else own[:, some],
            )
        )


def allowed_pairs(record: AttentionRecord) -> Mask:
    """Which value nodes each query may attend to, by mask and causality: (B or 1, H or 1, N1, N2)."""
    call = record.call
    lengths = call.query.shape[2], call.key.shape[2]
    allowed = torch.ones(1, 1, *lengths, dtype=torch.bool)
    mask = call.attention_mask
    if mask is not None:
        # Half of the smallest number: position biases are far above it, and hidden keys below it.
        shown = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        shown = shown.cpu()
        allowed = allowed & shown.reshape((1,) * (4 - shown.dim()) + tuple(shown.shape))
    if call.is_causal:
        allowed = allowed & torch.ones(lengths, dtype=torch.bool).tril()
    return np.asarray(allowed)


def present_queries(allowed: Mask, self_attention: bool, tokens: torch.Tensor | None) -> Mask:
    """Which queries are no padding, (N1,).

    A query without any value node is none; nor is a token that the batch says is padding; nor one that no query of a
    self-attention may attend to, not even itself.

    Args:
        allowed: (H or 1, N1, N2).
        self_attention: whether queries and keys are the same tokens.
        tokens: (L,), 1 for tokens of the batch and 0 for padding; counts where L is N1.
    """
    present = allowed.any(axis=-1).all(axis=0)
    if self_attention:
        present = present & allowed.any(axis=(0, 1))
    if tokens is not None and tokens.shape == present.shape:
        present = present & (tokens.cpu().numpy() != 0)
    return np.asarray(present)


def factors_of(site: AttentionSite) -> Factors:
    """Coordinates with the distances behind the output projection of a module, in float64."""
    weight = projection_weight(_linear(site.output())).detach().cpu().double()
    heads = metric_factor(weight, site.num_heads).numpy()
    return Factors(heads, metric_factor(weight, 1)[0].numpy())


def exponents_of(site: AttentionSite) -> dict[str, Exponent]:
    """Trained and initial p and mu of the active p-adapter of a module; empty without one, or if it has none."""
    layer = next((part for part in site.output().modules() if isinstance(part, PAdapterLayer)), None)
    names: Sequence[str] = () if layer is None else layer.present()
    if layer is None or len(names) != 1:
        return {}
    [name] = names
    settings = layer.settings[name]
    bottleneck = settings.form == "bottleneck"
    starts = {"p": settings.p, "mu": 2 * settings.mu if bottleneck else settings.mu}
    found = {}
    for exponent, value in zip(("p", "mu"), layer.exponents(name), strict=True):
        if exponent not in MESSAGE_PASSING[settings.operator].takes:
            continue
        trained = name in layer.leaf(exponent)
        used = _flat(value)
        stored = _flat(layer.leaf(exponent)[name]) if trained and not (bottleneck and exponent == "mu") else used
        out_of_range = None if np.array_equal(stored, used) else stored
        found[exponent] = Exponent(float(starts[exponent]), used, trained, out_of_range)
    return found


def _linear(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _flat(value: torch.Tensor | float) -> Array:
    number = value.detach().cpu() if isinstance(value, torch.Tensor) else value
    return np.atleast_1d(np.asarray(number, dtype=np.float64))


def _numpy(tensor: torch.Tensor) -> Array:
    return tensor.detach().cpu().double().numpy()
