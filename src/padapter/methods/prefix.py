"""Prefix tuning (Li and Liang, 2021): learned keys and values in front of every self-attention of the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from padapter.methods.base import Size
from padapter.methods.options import option, require
from padapter.methods.peft_method import PeftMethod

if TYPE_CHECKING:
    from padapter.backbones import Backbone


@dataclass(frozen=True)
class PrefixOptions:
    """Options of method ``prefix``."""

    num_virtual_tokens: int = option(16, help="Length of the prefix.")
    init: Literal["random", "zero"] = option("random", help="Start of keys and values: standard normal, or zero.")

    def __post_init__(self) -> None:
        require(
            self.num_virtual_tokens >= 1,
            f"method 'prefix': num_virtual_tokens must be at least 1, not {self.num_virtual_tokens}.",
        )


class Prefix(PeftMethod[PrefixOptions]):
    """Learned keys and values, in PEFT's file format.

    PEFT's own wrapper does not fit a decoder with cross-attention, so the adapter is used through
    :class:`padapter.methods.prefix_model.PrefixModel`; ``PeftModel.from_pretrained`` reads the files but would not
    put the prefix anywhere.
    """

    name = "prefix"
    summary = "Prefix tuning: learned keys and values in front of the decoder's self-attention."
    options = PrefixOptions
    peft_type = "PREFIX_TUNING"
    size = Size("num_virtual_tokens")

    def config(self, backbone: Backbone, options: PrefixOptions) -> Any:
        """See :meth:`PeftMethod.config`."""
        from peft import PrefixTuningConfig

        from padapter.methods.prefix_model import prefix_shape, stack_of

        model = backbone.base_model.config
        stack_of(model)
        shape = prefix_shape(model)
        return PrefixTuningConfig(
            num_virtual_tokens=options.num_virtual_tokens,
            init_weights="zero" if options.init == "zero" else None,
            **shape,
            encoder_hidden_size=shape["token_dim"],
            num_transformer_submodules=1,
        )

    def wrap(self, model: Any, config: Any) -> Any:
        """See :meth:`PeftMethod.wrap`."""
        from padapter.methods.prefix_model import PrefixModel

        return PrefixModel(model, config)
