"""Fields and checks that every tuner's configuration shares."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from transformers.activations import ACT2FN

from padapter.architectures import WHERE
from padapter.errors import UserError

INIT_STD = 0.02
DEFAULT_REDUCTION_FACTOR = 8


@dataclass(frozen=True)
class Variant:
    """One way to configure a tuner that the conformance suite goes through.

    Attributes:
        options: keyword arguments of the configuration.
        identity_at_start: whether the freshly adapted model equals the base model exactly.
    """

    options: dict[str, Any]
    identity_at_start: bool


@dataclass
class AdapterConfig(PeftConfig):
    """What a bottleneck needs, and which modules get one.

    Args:
        r: width of the bottleneck; default: from ``reduction_factor``. Not together with it.
        reduction_factor: the bottleneck is the model width divided by this; default 8.
        activation: name of the activation in the bottleneck, a key of transformers' ``ACT2FN``.
        dropout: probability of dropping an element of the bottleneck's input.
        bias: which biases of the model are trained too: "none", "all", or "<method>_only" for those of the wrapped
            Linears.
        init_weights: True starts the up-projection at zero, so that the bottleneck changes nothing at first. False
            draws every weight at random; for tests.
        target_modules: output projections to wrap: names (suffixes) or one regular expression; default: those of the
            model's architecture.
        where: which parts of the model to adapt, if ``target_modules`` is not given: one or a list of "decoder" (what
            generates the text; in a model without such a part, everything), "text_encoder" (what reads a text for
            it), "fusion" (what joins that with the image), "language" (these three), "vision", "connector" (between
            image and language model) and "all".
        exclude_modules: modules to leave out, in the same way.
        modules_to_save: further modules to train and save whole.
        layers_to_transform: indices of the layers to adapt; default all. Not together with a regular expression.
        layers_pattern: name of the list that holds the layers, if it is not found by itself.
    """

    r: int | None = field(default=None)
    reduction_factor: float | None = field(default=None)
    activation: str = field(default="gelu")
    dropout: float = field(default=0.0)
    bias: str = field(default="none")
    init_weights: bool = field(default=True)
    target_modules: list[str] | str | None = field(default=None)
    where: list[str] | str = field(default="decoder")
    exclude_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        self._check_widths()
        self._check_choices()
        self._check_layers()

    def layer_indices(self) -> list[int] | None:
        """``layers_to_transform`` as a list, or None for all layers."""
        layers = self.layers_to_transform
        return [layers] if isinstance(layers, int) else layers

    def where_list(self) -> list[str]:
        """``where`` as a list."""
        return [self.where] if isinstance(self.where, str) else list(self.where)

    def activation_function(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The activation of the bottleneck."""
        return ACT2FN[self.activation]

    def refuse(self, name: str, requirement: str) -> UserError:
        """The error for a field whose value cannot be used."""
        return UserError(f"{type(self).__name__}: `{name}` must be {requirement}, got {getattr(self, name)!r}.")

    def check_number(self, name: str, low: float, *, strict: bool = False, below: float = math.inf) -> None:
        """Raise `UserError` unless the field is a number that is >= low (> if strict) and < below."""
        value = getattr(self, name)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not good or value < low or (strict and value == low) or value >= below:
            limit = "" if below == math.inf else f" and < {below:g}"
            raise self.refuse(name, f"a number {'>' if strict else '>='} {low:g}{limit}")

    def check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        """Raise `UserError` unless the field is one of the choices."""
        if getattr(self, name) not in choices:
            raise self.refuse(name, "one of " + ", ".join(repr(choice) for choice in choices))

    def check_flag(self, name: str) -> None:
        """Raise `UserError` unless the field is a bool."""
        if not isinstance(getattr(self, name), bool):
            raise self.refuse(name, "True or False")

    def share(self, features: int) -> float:
        """``features / reduction_factor``, with the default of 8 filled in."""
        return features / (DEFAULT_REDUCTION_FACTOR if self.reduction_factor is None else self.reduction_factor)

    def contradiction(self, name: str, why: str) -> UserError:
        """The error for a field that another field leaves without effect."""
        return UserError(f"{type(self).__name__}: `{name}`={getattr(self, name)!r} has no effect {why}; leave it out.")

    def _check_widths(self) -> None:
        if self.r is not None and (not isinstance(self.r, int) or isinstance(self.r, bool) or self.r < 1):
            raise self.refuse("r", "a positive integer, or None for width // reduction_factor")
        if self.reduction_factor is not None:
            self.check_number("reduction_factor", 0, strict=True)
            if self.r is not None:
                raise self.contradiction("reduction_factor", f"beside r={self.r}")
        self.check_number("dropout", 0, below=1)
        self.check_flag("init_weights")

    def _check_choices(self) -> None:
        if self.activation not in ACT2FN:
            raise self.refuse("activation", "one of " + ", ".join(sorted(ACT2FN)))
        function = ACT2FN[self.activation]
        if isinstance(function, torch.nn.Module) and next(function.parameters(), None) is not None:
            raise self.refuse("activation", "an activation without parameters of its own")
        known = isinstance(self.where, (str, list, tuple, set)) and all(part in WHERE for part in self.where_list())
        if not known or not self.where:
            raise self.refuse("where", "one or several of " + ", ".join(map(repr, WHERE)))
        self.check_choice("bias", ("none", "all", f"{str(self.peft_type.value).lower()}_only"))

    def _check_layers(self) -> None:
        for name in ("target_modules", "layers_to_transform"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (str, int)) and len(value) == 0:
                raise self.refuse(name, "left out (None) or name something")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise UserError(
                f"{type(self).__name__}: `layers_to_transform` cannot be used when `target_modules` is a str; name "
                "the layers in the regular expression."
            )
        if isinstance(self.target_modules, str) and self.layers_pattern is not None:
            raise UserError(
                f"{type(self).__name__}: `layers_pattern` cannot be used when `target_modules` is a str; name the "
                "layers in the regular expression."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise UserError(
                f"{type(self).__name__}: when `layers_pattern` is specified, `layers_to_transform` must also be "
                "specified."
            )
        indices = self.layer_indices()
        if indices is not None and not all(isinstance(i, int) and i >= 0 for i in indices):
            raise self.refuse("layers_to_transform", "None, a layer index or a list of layer indices")
