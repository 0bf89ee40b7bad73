"""The p-adapter (arXiv 2312.10613): p-Laplacian message passing on the attention graph, then a bottleneck."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from padapter.methods.base import Size
from padapter.methods.options import option, require
from padapter.methods.peft_method import WHERE_HELP, OwnTuner, places

if TYPE_CHECKING:
    from padapter.backbones import Backbone


@dataclass(frozen=True)
class PAdapterOptions:
    """Options of method ``p-adapter``; ranges and contradictions are checked by ``PAdapterConfig``."""

    form: Literal["projected", "bottleneck"] = option(
        "projected", help="projected: the published equations; bottleneck: distances inside the bottleneck."
    )
    p: float = option(1.5, help="Start value of p, at least 1; 2 is ordinary attention.")
    mu: float = option(0.1, help="Start value of mu, the weight of a node's own feature; at least 0.")
    learn_p: bool = option(True, help="Whether p is trained.")
    learn_mu: bool = option(True, help="Whether mu is trained.")
    per_head: bool = option(False, help="One p and one mu per head instead of one per attention module.")
    message_passing: str = option(
        "pgnn", help="The graph layer: pgnn (p-Laplacian, with p and mu), gcn (plain attention), appnp or gcnii."
    )
    steps: int = option(1, help="How often pgnn, appnp and gcnii pass messages.")
    teleport: float = option(0.1, help="Share of a node's own features in each step of appnp and gcnii; below 1.")
    theta: float = option(0.5, help="Strength of gcnii's trained matrix per head; above 0.")
    degree: Literal["auto", "row", "symmetric"] = option("auto", help="Normalisation of the attention graph.")
    r: int | None = option(None, help="Width of the bottleneck; none means by reduction_factor.")
    reduction_factor: float | None = option(
        None, help="The bottleneck is the model width divided by this; none means 8, or r if that is given."
    )
    activation: str = option("gelu", help="Activation in the bottleneck, a name transformers knows.")
    dropout: float = option(0.0, help="Dropout on the bottleneck's input.")
    gate: bool = option(True, help="Whether the bottleneck form has its gate.")
    scaling: float = option(1.0, help="Factor of what the bottleneck adds.")
    ffn_adapter: bool | None = option(
        None, help="Whether feed-forward blocks get a vanilla adapter too; none means only in the bottleneck form."
    )
    ffn_reduction_factor: float = option(8, help="The reduction factor of these.")
    where: str = option("decoder", help=WHERE_HELP)
    target_modules: str | None = option(
        None,
        help="Output projections to adapt: names separated by commas, or a regular expression; "
        "none means the architecture's own.",
    )
    p_mu_lr_factor: float = option(1.0, help="Learning rate of p and mu, as a factor of that of everything else.")

    def __post_init__(self) -> None:
        factor = self.p_mu_lr_factor
        require(0 < factor < math.inf, f"method 'p-adapter': p_mu_lr_factor must be a number above 0, not {factor}.")


class PAdapter(OwnTuner[PAdapterOptions]):
    """Message passing on the attention graph in front of a bottleneck."""

    name = "p-adapter"
    summary = "p-adapter: p-Laplacian message passing on the attention graph, then a bottleneck."
    options = PAdapterOptions
    peft_type = "P_ADAPTER"
    size = Size("r", replaces=("reduction_factor",))

    def config(self, backbone: Backbone, options: PAdapterOptions) -> Any:
        """See :meth:`PeftMethod.config`."""
        from padapter.tuners import PAdapterConfig

        fields = {**vars(options), **places(options.where, options.target_modules)}
        del fields["p_mu_lr_factor"]  # of the optimizer, not of the model
        return PAdapterConfig(**fields)

    def sized(self, values: Mapping[str, Any], size: int, width: int) -> dict[str, Any]:
        """See :meth:`Method.sized`; feed-forward adapters, where there are any, get the same width."""
        options, found = self.parse(values), super().sized(values, size, width)
        if options.ffn_adapter or (options.ffn_adapter is None and options.form == "bottleneck"):
            # Widths are rounded down; the half keeps a quotient that is no binary fraction from losing one.
            found["ffn_reduction_factor"] = width / (size if width % size == 0 else size + 0.5)
        return found

    def learning_rate_factors(self, options: PAdapterOptions) -> Mapping[str, float]:
        """See :meth:`Method.learning_rate_factors`."""
        return {} if options.p_mu_lr_factor == 1 else {r"\.p_adapter_(p|mu)\.": options.p_mu_lr_factor}
