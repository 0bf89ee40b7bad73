"""LoRA (Hu et al., 2021), PEFT's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from padapter.methods.base import Size
from padapter.methods.config_fields import ConfigMethod
from padapter.methods.options import option, require
from padapter.methods.peft_method import target_pattern

if TYPE_CHECKING:
    from padapter.backbones import Backbone

NEEDS_DATA = "needs a pass over the data before training, which `padapter train` does not make"
REFUSED_STARTS = {
    "eva": NEEDS_DATA,
    "corda": NEEDS_DATA,
    "loftq": "replaces the model's weights by quantised ones; quantise the model itself instead",
}
"""Values of ``init_lora_weights`` that would not do what they promise -> why."""


@dataclass(frozen=True)
class LoraOptions:
    """Options of method ``lora``."""

    r: int = option(8, help="Rank of the update.")
    alpha: int | None = option(None, help="Scale: the update is multiplied by alpha / r. None means 2 r.")
    dropout: float = option(0.0, help="Dropout on the input of the update.")
    part: Literal["text", "image", "both"] = option("text", help="Which part of the model is adapted.")
    target_modules: str | None = option(
        None,
        help="Linear layers to adapt: names separated by commas, looked for in the part, or a regular expression over "
        "full names; none means the attention's query and value projections.",
    )
    b_lr_factor: float = option(
        1.0, help="Learning rate of the B matrices as a factor of that of the A matrices; LoRA+ advises 16."
    )

    def __post_init__(self) -> None:
        require(self.r >= 1, f"method 'lora': r must be at least 1, not {self.r}.")
        require(self.alpha is None or self.alpha >= 1, f"method 'lora': alpha must be at least 1, not {self.alpha}.")
        require(
            0 < self.b_lr_factor < math.inf,
            f"method 'lora': b_lr_factor must be a number above 0, not {self.b_lr_factor}.",
        )
        require(0 <= self.dropout < 1, f"method 'lora': dropout must lie in [0, 1), not {self.dropout}.")


class Lora(ConfigMethod[LoraOptions]):
    """Low-rank updates of the attention projections; every field of ``peft.LoraConfig`` is an option too."""

    name = "lora"
    summary = "LoRA: low-rank updates of the attention projections."
    options = LoraOptions
    peft_type = "LORA"
    size = Size("r")
    aliases: ClassVar[Mapping[str, str]] = {"lora_alpha": "alpha", "lora_dropout": "dropout"}

    def config_class(self) -> type[Any]:
        """See :meth:`ConfigMethod.config_class`."""
        from peft import LoraConfig

        return LoraConfig

    def config(self, backbone: Backbone, options: LoraOptions) -> Any:
        """See :meth:`PeftMethod.config`."""
        from peft import LoraConfig

        further = self.further(options)
        start = str(further.get("init_lora_weights"))
        require(start not in REFUSED_STARTS, f"method 'lora': init_lora_weights={start} {REFUSED_STARTS.get(start)}.")
        names = self.targets(backbone, target_pattern(backbone, options.part, options.target_modules), further)
        return LoraConfig(
            r=options.r,
            lora_alpha=2 * options.r if options.alpha is None else options.alpha,
            lora_dropout=options.dropout,
            target_modules=names,
            **further,
        )

    def learning_rate_factors(self, options: LoraOptions) -> Mapping[str, float]:
        """See :meth:`Method.learning_rate_factors`; LoRA+ (Hayou et al., 2024)."""
        return {} if options.b_lr_factor == 1 else {r"\.lora_(embedding_)?B\.": options.b_lr_factor}
