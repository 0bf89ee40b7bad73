"""The vanilla bottleneck adapter (Houlsby et al., 2019; Pfeiffer et al., 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from padapter.methods.base import Size
from padapter.methods.options import option
from padapter.methods.peft_method import WHERE_HELP, OwnTuner, places

if TYPE_CHECKING:
    from padapter.backbones import Backbone


@dataclass(frozen=True)
class AdapterOptions:
    """Options of method ``adapter``; ranges are checked by ``BottleneckConfig``."""

    location: Literal["attention", "feedforward", "both", "houlsby", "pfeiffer"] = option(
        "both", help="Which blocks get an adapter; houlsby = both, pfeiffer = feedforward."
    )
    mode: Literal["sequential", "parallel"] = option(
        "sequential", help="Whether the adapter reads the block's output or its input."
    )
    reduction_factor: float | None = option(
        None, help="The bottleneck is the model width divided by this; none means 8, or r if that is given."
    )
    r: int | None = option(None, help="Width of the bottleneck; none means by reduction_factor.")
    activation: str = option("relu", help="Activation in the bottleneck, a name transformers knows.")
    scaling: float | Literal["learned"] = option(1.0, help="Factor of the adapter's output, or 'learned'.")
    dropout: float = option(0.0, help="Dropout on the bottleneck's input.")
    where: str = option("decoder", help=WHERE_HELP)
    target_modules: str | None = option(
        None,
        help="Output projections to adapt, instead of location: names separated by commas, or a regular expression.",
    )


class Adapter(OwnTuner[AdapterOptions]):
    """A bottleneck behind attention and feed-forward blocks."""

    name = "adapter"
    summary = "Vanilla adapter: a bottleneck behind attention and feed-forward blocks."
    options = AdapterOptions
    peft_type = "BOTTLENECK"
    size = Size("r", replaces=("reduction_factor",))

    def config(self, backbone: Backbone, options: AdapterOptions) -> Any:
        """See :meth:`PeftMethod.config`."""
        from padapter.tuners import BottleneckConfig

        fields = {**vars(options), **places(options.where, options.target_modules)}
        return BottleneckConfig(**fields)
