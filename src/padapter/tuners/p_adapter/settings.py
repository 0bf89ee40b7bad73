"""What a layer of the p-adapter keeps of an adapter's config."""

from __future__ import annotations

from dataclasses import dataclass

from padapter.tuners.base_layer import BottleneckSettings
from padapter.tuners.p_adapter.config import PAdapterConfig
from padapter.tuners.p_adapter.message_passing import MessagePassing


@dataclass(frozen=True)
class PAdapterSettings(BottleneckSettings):
    """`BottleneckSettings`, and how one adapter passes messages.

    Attributes:
        form: "projected", "bottleneck", or "vanilla" behind a feed-forward block.
        operator: name in `MESSAGE_PASSING`.
        p: the exponent if it is not trained.
        mu: the base value of mu.
        degree: "row" or "symmetric".
        per_head: whether p and mu differ between heads.
        steps: how often messages are passed.
        teleport: share of a node's own features.
        theta: strength of the mapping.
        update_values: whether value nodes move between steps.
    """

    form: str
    operator: str
    p: float
    mu: float
    degree: str
    per_head: bool
    steps: int
    teleport: float
    theta: float
    update_values: bool

    def sums_over_queries(self, operator: MessagePassing) -> bool:
        """Whether value nodes sum over the queries, of which padding is none."""
        moves = self.steps > 1 and self.update_values and "update_values" in operator.takes
        return moves or self.degree == "symmetric"


def settings_of(config: PAdapterConfig, form: str, degree: str, *, update_values: bool) -> PAdapterSettings:
    """The settings of one adapter in one place.

    Args:
        config: of the adapter.
        form: see `PAdapterSettings`.
        degree: see `PAdapterSettings`.
        update_values: see `PAdapterSettings`.
    """
    return PAdapterSettings(
        activation=config.activation_function(),
        dropout=config.dropout,
        scaling=float(config.scaling),
        form=form,
        operator=config.message_passing,
        p=float(config.p),
        mu=float(config.mu),
        degree=degree,
        per_head=config.per_head,
        steps=config.steps,
        teleport=float(config.teleport),
        theta=float(config.theta),
        update_values=update_values,
    )
