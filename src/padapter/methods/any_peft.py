"""Every other tuner of PEFT, by the lower-case name of its type; the fields of its configuration are its options."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from padapter.errors import UserError
from padapter.methods.base import Size
from padapter.methods.config_fields import ConfigMethod
from padapter.methods.options import option
from padapter.methods.peft_method import part_pattern, target_pattern

if TYPE_CHECKING:
    from padapter.backbones import Backbone


@dataclass(frozen=True)
class AnyPeftOptions:
    """Options of every PEFT tuner, next to the fields of its configuration."""

    part: Literal["text", "image", "both"] = option("text", help="Which part of the model is adapted.")
    target_modules: str | None = option(
        None,
        help="Modules to adapt: names separated by commas, looked for in the part, or a regular expression over full "
        "names; none means the attention's query and value projections.",
    )


@dataclass(frozen=True)
class Special:
    """What sets a tuner apart from the others.

    Attributes:
        targets: What it adapts by default.
        defaults: Fields of its configuration that PEFT leaves open, but needs.
        refused: Why it cannot be trained here; empty if it can.
        size: The field that grows with the number of trained parameters, where the configuration has it.
    """

    targets: Literal["projections", "norms"] = "projections"
    defaults: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    size: str | None = "r"


EXCEPTIONS = {
    # PEFT wants to know which targets are feed-forward layers: of query and value none is.
    "IA3": Special(defaults={"feedforward_modules": []}),
    "FROD": Special(defaults={"progressbar": False}),
    "LN_TUNING": Special(targets="norms"),
    "ADALORA": Special(refused="it moves rank between layers after every step, which `padapter train` does not do"),
    "OFT": Special(size="oft_block_size"),
    "FOURIERFT": Special(size="n_frequency"),
    "WAVEFT": Special(size="n_frequency"),
    "UNILORA": Special(size="theta_d_length"),
    "RANDLORA": Special(size=None),  # more rank, fewer parameters
    "TINYLORA": Special(size=None),  # rank is of the frozen part
    "POLY": Special(refused="it needs the number of a task with every row"),
    "SHADOW": Special(refused="it runs a second, smaller copy of a text-only decoder"),
    "XLORA": Special(refused="it mixes LoRA adapters that are trained already"),
    "TRAINABLE_TOKENS": Special(
        refused="it trains the embeddings of chosen tokens, and in a decoder that shares them with its output layer "
        "it does not start as the base model"
    ),
}
"""By ``peft_type``. All others adapt query and value projections and are used as PEFT made them."""

SPELLINGS = {
    "dora": "lora:use_dora=true",
    "rslora": "lora:use_rslora=true",
    "pissa": "lora:init_lora_weights=pissa",
    "olora": "lora:init_lora_weights=olora",
    "lora+": "lora:b_lr_factor=16",
    "loraplus": "lora:b_lr_factor=16",
    "layernorm": "ln-tuning",
    "bottleneck": "adapter",
    "houlsby": "adapter:location=houlsby",
    "pfeiffer": "adapter:location=pfeiffer",
    "prefix-tuning": "prefix",
}
"""What people call a method -> how it is asked for here."""

PROBLEMS = (ValueError, TypeError, AttributeError, KeyError, RuntimeError, ImportError)
"""What tuners of PEFT raise when their configuration does not fit a model; ``NotImplementedError`` is one of them."""


class AnyPeft(ConfigMethod[AnyPeftOptions]):
    """A tuner of PEFT, as PEFT made it.

    Args:
        peft_type: Its key in PEFT's registry.
    """

    options = AnyPeftOptions

    def __init__(self, peft_type: str) -> None:
        # Class attributes of all other methods; here one class serves many names.
        self.peft_type = peft_type  # type: ignore[misc]
        self.name = peft_type.lower().replace("_", "-")  # type: ignore[misc]
        grows = self.special.size if self.special.size in self.further_fields() else None
        self.size = Size(grows) if grows else None  # type: ignore[misc]
        self.summary = f"PEFT's {self.config_class().__name__.removesuffix('Config')}."  # type: ignore[misc]

    @property
    def special(self) -> Special:
        """Its row of ``EXCEPTIONS``, or an empty one."""
        return EXCEPTIONS.get(self.peft_type, Special())

    def config_class(self) -> type[Any]:
        """See :meth:`ConfigMethod.config_class`."""
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        found: type[Any] = PEFT_TYPE_TO_CONFIG_MAPPING[self.peft_type]
        return found

    def config(self, backbone: Backbone, options: AnyPeftOptions) -> Any:
        """See :meth:`PeftMethod.config`.

        Raises:
            UserError: If the tuner cannot be trained here, or its configuration refuses the options.
        """
        if self.special.refused:
            raise UserError(f"method '{self.name}' cannot be trained here: {self.special.refused}.")
        if self.special.targets == "norms" and options.target_modules is None:
            chosen = part_pattern(backbone, options.part, _norms(backbone))
        else:
            chosen = target_pattern(backbone, options.part, options.target_modules)
        further = self.further(options)
        names = self.targets(backbone, chosen, further)
        fields = {**self.special.defaults, **further, "target_modules": names}
        try:
            return self.config_class()(**fields)
        except PROBLEMS as error:
            raise UserError(f"method '{self.name}': PEFT refuses these options: {error}") from error

    def wrap(self, model: Any, config: Any) -> Any:
        """See :meth:`PeftMethod.wrap`; problems of any kind become one that :meth:`apply` reports."""
        try:
            return super().wrap(model, config)
        except UserError:
            raise
        except PROBLEMS as error:
            raise ValueError(str(error)) from error


@functools.cache
def peft_methods() -> dict[str, AnyPeft]:
    """The tuners of the installed PEFT that change modules and have no method of their own here, by name.

    Prompt learning is left out: it puts tokens in front of a text, which only ``prefix`` can do for these models.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    own = {"LORA", "P_ADAPTER", "BOTTLENECK"}
    found = {}
    for peft_type, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items():
        key = str(getattr(peft_type, "value", peft_type))
        if key not in own and peft_type in PEFT_TYPE_TO_CONFIG_MAPPING and issubclass(tuner, BaseTuner):
            method = AnyPeft(key)
            found[method.name] = method
    return dict(sorted(found.items()))


def peft_types() -> list[str] | None:
    """Names of the types that the installed PEFT lists, tuners or not, found without importing it and torch with it.

    Returns:
        The names; ``None`` where PEFT is loaded anyway, or lists them elsewhere: :func:`peft_methods` knows then.
    """
    if "peft" in sys.modules:
        return None
    package = importlib.util.find_spec("peft")
    folders = [] if package is None else list(package.submodule_search_locations or ())
    for file in (Path(folder) / "utils" / "peft_types.py" for folder in folders):
        spec = importlib.util.spec_from_file_location("_padapter_peft_types", file)
        if file.is_file() and spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return sorted(str(item.value).lower().replace("_", "-") for item in module.PeftType)
    return None


def _norms(backbone: Backbone) -> list[str]:
    """Last names of the model's normalisation layers, e.g. LayerNorm or norm1."""
    modules = backbone.base_model.named_modules()
    return sorted({name.rpartition(".")[2] for name, module in modules if re.search(r"Norm", type(module).__name__)})
