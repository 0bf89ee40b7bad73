"""Registering a tuner with PEFT from outside PEFT.

``register_peft_method`` accepts only names that are members of the ``PeftType`` enum, and an enum with members cannot
be extended by its own means; `add_peft_type` writes the member the way ``EnumMeta`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method

from padapter.errors import UserError
from padapter.tuners.base_layer import BottleneckLayer, modules_of


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


def guard_merging_beside_our_adapters() -> None:
    """Let other tuners of PEFT merge in a model that also carries adapters of ours only where that is sound.

    ``merge_adapter`` is refused where a projection carries a layer of theirs and one of ours: theirs would be merged
    below ours, which then reads another weight. ``merge_and_unload`` is refused as soon as the model has a layer of
    ours, since PEFT unloads the layers of every tuner and ours would be lost. Our layers cannot refuse by themselves:
    their turn comes when PEFT has already merged others.
    """
    if hasattr(BaseTuner.merge_adapter, "padapter_guards"):
        return
    BaseTuner.merge_adapter = _guarded(BaseTuner.merge_adapter, _check_nothing_shared)
    BaseTuner.merge_and_unload = _guarded(BaseTuner.merge_and_unload, _check_nothing_lost)


def _guarded(original: Callable[..., Any], check: Callable[[BaseTuner], None]) -> Callable[..., Any]:
    @wraps(original)
    def guarded(self: BaseTuner, *args: Any, **kwargs: Any) -> Any:
        check(self)
        return original(self, *args, **kwargs)

    guarded.padapter_guards = True  # type: ignore[attr-defined]
    return guarded


def _check_nothing_shared(tuner: BaseTuner) -> None:
    for name, module in tuner.model.named_modules():
        chain = list(_chain(module))
        if any(isinstance(layer, BottleneckLayer) for layer in chain) and not all(
            isinstance(layer, BottleneckLayer) for layer in chain
        ):
            raise UserError(
                f"{name}: carries {' around '.join(type(layer).__name__ for layer in chain)}, and beside a bottleneck "
                "adapter on the same projection another one cannot be merged. Keep both beside the model, or leave "
                "this projection out of the other method's targets."
            )


def _check_nothing_lost(tuner: BaseTuner) -> None:
    if any(True for _ in modules_of(tuner.model)):
        raise UserError(
            "the model carries bottleneck adapters or p-adapters, which cannot be merged, and merge_and_unload() would "
            "drop them. To merge another method's adapters beside them call merge_adapter(); to get the base model "
            "back call unload()."
        )


def _chain(module: Any) -> Iterator[BaseTunerLayer]:
    """The tuner layers around one module, from the outermost on."""
    while isinstance(module, BaseTunerLayer):
        yield module
        module = module.base_layer
