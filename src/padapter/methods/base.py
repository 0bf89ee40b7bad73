"""What a method of adaptation is: options in, a changed model out, saved and loaded again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from padapter.errors import UserError
from padapter.methods.options import parse_options

if TYPE_CHECKING:
    from torch import nn

    from padapter.backbones import Backbone

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class Size:
    """The option that makes a method larger: more of it, more trainable parameters.

    Attributes:
        name: The option.
        low: Its smallest value.
        replaces: Options that say the same in another way and are dropped when this one is set.
    """

    name: str
    low: int = 1
    replaces: tuple[str, ...] = ()


class Method(ABC, Generic[OptionsT]):
    """One way to adapt a model; what ``--method`` names.

    Attributes:
        name: What the user types.
        summary: One line for help texts and model cards.
        options: Dataclass of the method's options, fields made with :func:`padapter.methods.options.option`.
        size: The option that sets how many parameters are trained, for a budget; ``None`` if there is none.
        all_learn: Whether every trainable parameter is meant to receive a gradient; training says which do not.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: type[OptionsT]
    size: ClassVar[Size | None] = None
    all_learn: ClassVar[bool] = True

    def parse(self, values: Mapping[str, Any]) -> OptionsT:
        """Build the method's options from names and values, e.g. strings from a command line.

        Args:
            values: Option names and values; text is converted to the option's type.

        Returns:
            The options.

        Raises:
            UserError: If a name is unknown (the known ones are listed) or a value does not fit.
        """
        return parse_options(self.options, values, self.name)

    def sized(self, values: Mapping[str, Any], size: int, width: int) -> dict[str, Any]:
        """Set the size among options.

        Args:
            values: Options as for :meth:`parse`.
            size: Value of the option that ``self.size`` names.
            width: Width of the model's text part, for methods with several sizes to keep in step.

        Returns:
            The options with that size.
        """
        if self.size is None:
            raise ValueError(f"method '{self.name}' has no size")
        kept = {str(name).replace("-", "_"): value for name, value in values.items()}
        return {name: value for name, value in kept.items() if name not in self.size.replaces} | {self.size.name: size}

    def learning_rate_factors(self, options: OptionsT) -> Mapping[str, float]:
        """Parameters that learn faster or slower than the others.

        Args:
            options: Options of this method.

        Returns:
            Regular expression, found anywhere in a parameter's name -> factor of the learning rate; the first that is
            found counts. Empty: one rate for all.
        """
        return {}

    @abstractmethod
    def apply(self, backbone: Backbone, options: OptionsT) -> None:
        """Make ``backbone.model`` trainable by this method; everything else is frozen.

        Args:
            backbone: An unadapted backbone; its ``model`` is replaced or changed.
            options: Options of this method.

        Raises:
            UserError: If the options do not fit the model, e.g. match none of its modules.
        """

    @abstractmethod
    def save(self, backbone: Backbone, directory: str | Path) -> None:
        """Write what training changed.

        Args:
            backbone: A backbone this method was applied to.
            directory: Folder to write; created if need be.
        """

    @abstractmethod
    def load(self, backbone: Backbone, directory: str | Path, trainable: bool = False) -> None:
        """Put what :meth:`save` wrote into an unadapted backbone.

        Args:
            backbone: A backbone of the model the adaptation was trained on.
            directory: Folder written by :meth:`save`.
            trainable: Whether training shall continue; otherwise everything is frozen.

        Raises:
            UserError: If the folder holds something else, or was made for another model; the backbone is unchanged.
        """


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """Count parameters; shared ones once.

    Args:
        model: Any module.

    Returns:
        (trainable, total).
    """
    trainable = total = 0
    for parameter in model.parameters():
        total += parameter.numel()
        trainable += parameter.numel() if parameter.requires_grad else 0
    return trainable, total


def listed(names: list[str], limit: int = 5) -> str:
    """Join the first few names for an error message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def read_weights(file: Path) -> dict[str, Any]:
    """Read a safetensors file.

    Args:
        file: The file.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        UserError: If the file cannot be read or is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise UserError(f"'{file}' is damaged or cannot be read ({error}); restore it, or train again.") from error


def differences(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Say which tensors of ``found`` do not fit ``expected``.

    Args:
        expected: Tensors the model has room for, by name.
        found: Tensors of the file, by name.

    Returns:
        One sentence per kind of difference; empty if all names and shapes agree.
    """
    absent = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    shapes = [
        f"{name} is {tuple(found[name].shape)} in the file and {tuple(expected[name].shape)} in the model"
        for name in sorted(expected.keys() & found.keys())
        if found[name].shape != expected[name].shape
    ]
    kinds = (
        (f"shapes differ: {listed(shapes)}.", shapes),
        (f"the model has no place for: {listed(extra)}.", extra),
        (f"the file lacks: {listed(absent)}.", absent),
    )
    return " ".join(sentence for sentence, names in kinds if names)
