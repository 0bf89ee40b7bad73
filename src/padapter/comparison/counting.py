"""How many parameters a method trains, counted without memory for the weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from padapter.backbones.base import unwrapped
from padapter.backbones.loading import family_of
from padapter.errors import UserError
from padapter.methods import get_method, trainable_parameters


@dataclass(frozen=True)
class Count:
    """Parameters of an adapted model; shared ones count once.

    Attributes:
        trainable: those that training changes.
        total: all, the method's own included.
        base: all of the model before.
    """

    trainable: int
    total: int
    base: int

    @property
    def fraction(self) -> float:
        """Trainable as a share of all parameters, adapters included."""
        return self.trainable / self.total

    @property
    def fraction_of_base(self) -> float:
        """Trainable as a share of the unadapted model."""
        return self.trainable / self.base


@dataclass
class Skeleton:
    """What a method needs of a backbone to be applied: a model, and where its parts are; it cannot read or write.

    Attributes:
        model: The model, usually without storage (on torch's meta device).
        name: What messages call it.
        parts: As in :class:`padapter.backbones.Backbone`.
        projections: As there.
    """

    model: Any
    name: str
    parts: Mapping[Any, str]
    projections: Mapping[Any, tuple[str, ...]]

    @property
    def base_model(self) -> Any:
        """The model without a PEFT wrapper."""
        return unwrapped(self.model)


SkeletonFactory = Callable[[str], Skeleton]
"""Makes a fresh skeleton on a device: ``meta`` or ``cpu``."""


def skeletons_of(config: PretrainedConfig, name: str = "", *, asks: bool = True) -> SkeletonFactory:
    """Skeletons of a model that is known by its configuration only; needs no weights and no network.

    Args:
        config: of transformers, for BLIP, mPLUG or any image-text-to-text model.
        name: what messages call the model; default its type.
        asks: see :func:`padapter.backbones.load_backbone`.
    """
    called = name or str(config.model_type)

    def make(device: str) -> Skeleton:
        family = family_of(config, called)
        with torch.device(device):
            model = family.build(copy.deepcopy(config), asks=asks)
        return Skeleton(model, called, *family.anatomy(model))

    return make


def count(method: str, values: Mapping[str, Any], skeletons: SkeletonFactory) -> Count:
    """Count what a method would train.

    On torch's meta device, which holds shapes but no numbers; a method that needs numbers for its start (some of
    PEFT's) is applied to random weights on the CPU instead.

    Args:
        method: its name.
        values: its options, as for :meth:`padapter.methods.Method.parse`.
        skeletons: makes the model.

    Raises:
        UserError: if the options do not fit the model.
    """
    chosen = get_method(method)
    options = chosen.parse(values)
    for device in ("meta", "cpu"):
        skeleton = skeletons(device)
        base = trainable_parameters(skeleton.model)[1]
        try:
            with torch.device(device), warnings.catch_warnings():
                # About a size that is only tried; where the method is applied for a run they come again.
                warnings.simplefilter("ignore")
                chosen.apply(skeleton, options)  # type: ignore[arg-type]
        except (UserError, NotImplementedError, RuntimeError) as error:
            if device == "meta" and _needs_numbers(error):
                continue
            raise
        return Count(*trainable_parameters(skeleton.model), base)
    raise AssertionError("the CPU has numbers")


def _needs_numbers(error: BaseException) -> bool:
    return "meta" in f"{error} {error.__cause__}".lower()
