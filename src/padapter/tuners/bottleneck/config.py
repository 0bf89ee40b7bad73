"""Options of the vanilla bottleneck adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from padapter.tuners.base_config import AdapterConfig, Variant
from padapter.tuners.registration import add_peft_type

ALIASES = {"houlsby": "both", "pfeiffer": "feedforward"}
LOCATIONS = ("attention", "feedforward", "both", *ALIASES)
MODES = ("sequential", "parallel")


@dataclass
class BottleneckConfig(AdapterConfig):
    """Configuration of bottleneck adapters, ``y + s W_up act(W_down dropout(x))``.

    Here y is the output of an attention or feed-forward block, before dropout, residual connection and layer norm.
    Sequential adapters read x = y; parallel adapters read what enters the block (He et al., 2022).

    Args:
        location: which blocks of the model get an adapter, if ``target_modules`` is not given: "attention",
            "feedforward" (alias "pfeiffer") or "both" (alias "houlsby"). An alias is stored as what it stands for.
        mode: "sequential" or "parallel". Parallel needs to know the block's input, so its targets must be output
            projections of a known architecture; sequential adapters go behind any Linear of any model.
        scaling: the factor s, or "learned" for one trainable factor per adapter that starts at 1.
    """

    location: str = field(default="both")
    mode: str = field(default="sequential")
    scaling: float | str = field(default=1.0)
    activation: str = field(default="relu")

    def __post_init__(self) -> None:
        self.peft_type = add_peft_type("BOTTLENECK")
        super().__post_init__()
        self.check_choice("location", LOCATIONS)
        self.location = ALIASES.get(self.location, self.location)
        self.check_choice("mode", MODES)
        if isinstance(self.scaling, str):
            if self.scaling != "learned":
                raise self.refuse("scaling", 'a number > 0 or "learned"')
        else:
            self.check_number("scaling", 0, strict=True)

    def width(self, features: int) -> int:
        """Width of the bottleneck behind a block of ``features``."""
        return self.r if self.r is not None else max(1, int(self.share(features)))

    @classmethod
    def variants(cls) -> dict[str, Variant]:
        """What the conformance suite runs."""
        options: dict[str, dict[str, Any]] = {
            "houlsby": {"location": "houlsby"},
            "pfeiffer": {"location": "pfeiffer", "r": 6},
            "attention": {"location": "attention", "activation": "gelu_new", "scaling": 0.5},
            "parallel": {"mode": "parallel", "scaling": "learned"},
        }
        return {name: Variant(option, identity_at_start=True) for name, option in options.items()}
