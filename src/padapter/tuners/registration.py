"""Registering a tuner with PEFT from outside PEFT.

``register_peft_method`` accepts only names that are members of the ``PeftType`` enum, and an enum with members cannot
be extended by its own means; `add_peft_type` writes the member the way ``EnumMeta`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

from padapter.errors import UserError
from padapter.tuners.base_layer import NOT_MERGEABLE, modules_of


@dataclass(frozen=True)
class Tuner:
    """One PEFT method of this package.

    Attributes:
        name: lower-case name; the PEFT type is its upper case and the parameter prefix is ``name_``.
        config: its configuration class.
        model: its ``BaseTuner`` class.
    """

    name: str
    config: type[Any]
    model: type[Any]


def add_peft_type(name: str) -> PeftType:
    """Return the ``PeftType`` called ``name``, adding it to the enum if it is not there."""
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member._sort_order_ = len(PeftType.__members__)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)
    type.__setattr__(PeftType, name, member)
    return member


def register_tuner(tuner: Tuner) -> None:
    """Make a tuner known to PEFT; doing so again changes nothing.

    Raises:
        RuntimeError: if PEFT, or another package, has a method of the same name.
    """
    peft_type = add_peft_type(tuner.name.upper())
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)
    if known is tuner.config:
        return
    if known is not None:
        raise RuntimeError(
            f"PEFT already has a method {tuner.name!r} ({known.__module__}.{known.__name__}); padapter cannot register "
            "its own. Use a version of peft that padapter's pyproject.toml allows."
        )
    register_peft_method(name=tuner.name, config_cls=tuner.config, model_cls=tuner.model)


def refuse_merging_beside_our_adapters() -> None:
    """Make every tuner of PEFT refuse to merge while the model also carries adapters of ours.

    LoRA on the projection that one of our layers wraps would be merged below that layer, and PEFT would drop the layer
    without a word, or find out half-way. PEFT asks `_check_merge_allowed` before it touches anything.
    """
    original = BaseTuner._check_merge_allowed
    if hasattr(original, "padapter_refuses"):
        return

    @wraps(original)
    def check(self: Any) -> None:
        if any(True for _ in modules_of(self.model)):
            raise UserError(NOT_MERGEABLE)
        original(self)

    check.padapter_refuses = True  # type: ignore[attr-defined]
    BaseTuner._check_merge_allowed = check
