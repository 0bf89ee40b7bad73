"""The graph layers a p-adapter can run on the attention graph: name -> operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from padapter.architectures.padding import hidden_keys
from padapter.errors import UserError
from padapter.functional import (
    Step,
    appnp_attention,
    appnp_step,
    appnp_weights,
    gcn_attention,
    gcn_weights,
    gcnii_attention,
    gcnii_step,
    gcnii_weights,
    p_laplacian_attention,
    p_laplacian_step,
    p_laplacian_weights,
)

#: Fields of `PAdapterConfig` that only some layers take; with another layer, a value for them is refused.
LAYER_FIELDS = ("p", "mu", "steps", "teleport", "theta")

#: What else a layer may take, from the adapter and the attention module it works in.
LAYER_ARGUMENTS = ("metric_factor", "update_values", "mapping")


@dataclass(frozen=True)
class MessagePassing:
    """One graph layer.

    Attributes:
        context: maps (query, key, value, *, node_query, attention_mask, is_causal, scale, degree, dropout_p), and what
            it ``takes``, to the new features of the query nodes (B, H, N1, dh).
        weights: the same arguments without ``dropout_p``, to the weights (B, H, N1, N2) of the last step and the query
            nodes' own share (B, H, N1).
        takes: further keyword arguments, of `LAYER_FIELDS` and of:

            * ``metric_factor`` (H, dh, dh): R, for distances behind the output projection (projected form only).
            * ``update_values``: whether value nodes may move; False in decoders, where query i must reach no other.
            * ``mapping`` (H, dh, dh): one matrix per head, trained from the identity, to which weight decay pulls it.
        steps_in_decoders: whether, given the config, more steps change anything where value nodes keep their features.
        step: the arguments of ``weights``, to the last step taken apart (`padapter.functional.Step`). None where the
            context is ``W V + own F`` of the features given: then ``weights`` says it all.
    """

    context: Callable[..., torch.Tensor]
    weights: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    takes: frozenset[str] = frozenset()
    steps_in_decoders: Callable[[Any], bool] = lambda config: True
    step: Callable[..., Step] | None = None

    def last_step(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **arguments: Any) -> Step:
        """The last step taken apart; arguments as ``weights`` takes them."""
        if self.step is not None:
            return self.step(query, key, value, **arguments)
        weights, own = self.weights(query, key, value, **arguments)
        nodes = query if arguments.get("node_query") is None else arguments["node_query"]
        groups = weights.shape[1] // value.shape[1]
        features, nodes = (states.to(weights.dtype) for states in (value.repeat_interleave(groups, dim=1), nodes))
        return Step(weights, own, features, nodes)


MESSAGE_PASSING: dict[str, MessagePassing] = {
    # p-Laplacian message passing, equations (7)-(8).
    "pgnn": MessagePassing(
        p_laplacian_attention,
        p_laplacian_weights,
        frozenset({"p", "mu", "steps", "metric_factor", "update_values"}),
        # p = 2: the weights do not depend on the features
        steps_in_decoders=lambda config: config.learn_p or config.p != 2,
        step=p_laplacian_step,
    ),
    # The graph convolution that plain attention is; what is left is a vanilla adapter (equation 9).
    "gcn": MessagePassing(gcn_attention, gcn_weights),
    # Personalised propagation.
    "appnp": MessagePassing(
        appnp_attention,
        appnp_weights,
        frozenset({"steps", "teleport", "update_values"}),
        steps_in_decoders=lambda config: False,
        step=appnp_step,
    ),
    # Personalised propagation with an identity mapping.
    "gcnii": MessagePassing(
        gcnii_attention,
        gcnii_weights,
        frozenset({"steps", "teleport", "theta", "mapping", "update_values"}),
        step=gcnii_step,
    ),
}


def register_message_passing(name: str, layer: MessagePassing, *, replace: bool = False) -> None:
    """Add a graph layer, as a value of ``PAdapterConfig(message_passing=...)``.

    Args:
        name: its name. Saved adapters refer to it, so it must be registered again before they are loaded.
        layer: the layer.
        replace: whether a layer of the same name may be overwritten.

    Raises:
        UserError: if the name is taken and ``replace`` is False, or if the layer takes an argument nobody has.
    """
    if name in MESSAGE_PASSING and not replace:
        raise UserError(f"message passing {name!r} is registered already. Pass replace=True to overwrite.")
    unknown = sorted(layer.takes - {*LAYER_FIELDS, *LAYER_ARGUMENTS})
    if unknown:
        raise UserError(
            f"message passing {name!r} takes {', '.join(unknown)}, which no adapter has; `takes` may name "
            f"{', '.join((*LAYER_FIELDS, *LAYER_ARGUMENTS))}."
        )
    MESSAGE_PASSING[name] = layer


def without_padding(mask: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
    """Remove the rows of padding from the mask of a bidirectional self-attention.

    The degree of a value node sums over all queries, and so does what it receives when it moves; padding is not one of
    them: without this, what a sample gets would depend on how far its batch is padded. A mask of keys says nothing of
    queries, but in self-attention they are the same tokens: padding is a token that no query may attend to.

    Args:
        mask: boolean (True = attend) or additive, (B or 1, H or 1, N1 or 1, N2).
        queries: N1.
        keys: N2.

    Returns:
        The mask, with every key removed from the rows of padding; as it is if it has other dimensions or N1 != N2.
    """
    if mask.dim() != 4 or queries != keys or mask.shape[-1] != keys:
        return mask
    return without_queries(mask, ~hidden_keys(mask))


def without_queries(mask: torch.Tensor | None, present: torch.Tensor) -> torch.Tensor:
    """Remove every key from the rows of some queries, which are then no nodes of the graph.

    Args:
        mask: boolean (True = attend) or additive, (B or 1, H or 1, N1 or 1, N2), or None.
        present: (B or 1, H or 1, N1), False for the queries to take out.

    Returns:
        The mask with these rows emptied, (B or 1, H or 1, N1, N2 or 1).
    """
    rows = present.unsqueeze(-1)
    if mask is None:
        return rows
    return mask & rows if mask.dtype == torch.bool else mask.masked_fill(~rows, -torch.inf)
