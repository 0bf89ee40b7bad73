"""Methods whose options are, besides a few of their own, all fields of a PEFT configuration."""

from __future__ import annotations

import dataclasses
import re
import typing
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from padapter.errors import UserError
from padapter.methods.options import option, parse_options
from padapter.methods.peft_method import PeftMethod, targets

if TYPE_CHECKING:
    from padapter.backbones import Backbone

OptionsT = TypeVar("OptionsT")


class ConfigMethod(PeftMethod[OptionsT]):
    """A method that hands on to its ``PeftConfig`` what it has no option for.

    Only fields that were given become options, so that a run records those and no hundred defaults of PEFT; the
    adapter's own ``adapter_config.json`` holds them all.

    Attributes:
        aliases: Field of the configuration -> the method's own option that stands for it.
    """

    aliases: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def config_class(self) -> type[Any]:
        """The ``PeftConfig`` subclass whose fields are options."""

    def parse(self, values: Mapping[str, Any]) -> OptionsT:
        """See :meth:`Method.parse`; names that are no option are looked up among the configuration's fields."""
        named = {self._name(name): name for name in values}
        own = {item.name for item in dataclasses.fields(self.options)}  # type: ignore[arg-type]
        given = named.keys() - own
        if not given:
            return parse_options(self.options, _renamed(values, self.aliases), self.name)
        fields = self.further_fields()
        # An unknown name: with all fields there, the error can say which one was meant.
        chosen = given if given <= fields.keys() else fields.keys()
        kinds = {name: kind for name, kind in fields.items() if name in chosen}
        return parse_options(_extended(self.options, kinds), _renamed(values, self.aliases), self.name)

    def further_fields(self) -> dict[str, Any]:
        """Fields of the configuration that are options beside the method's own: name -> type."""
        from peft import PeftConfig

        config_class = self.config_class()
        hints = typing.get_type_hints(config_class)
        common = {item.name for item in dataclasses.fields(PeftConfig)}
        own = {item.name for item in dataclasses.fields(self.options)} | self.aliases.keys()  # type: ignore[arg-type]
        names = [item.name for item in dataclasses.fields(config_class) if item.init]
        return {name: hints[name] for name in names if name not in common | own}

    def further(self, options: OptionsT) -> dict[str, Any]:
        """What was given for fields of the configuration, as the configuration wants it."""
        kinds = self.further_fields()
        return {name: _field(value, kinds[name]) for name, value in vars(options).items() if name in kinds}

    def targets(self, backbone: Backbone, pattern: str, further: dict[str, Any]) -> str | list[str]:
        """``target_modules`` for a pattern over full names.

        PEFT refuses ``layers_to_transform`` next to a pattern and ignores it next to full names, so the layers are
        chosen here and the two fields about them are taken out of ``further``.

        Raises:
            UserError: If no module of these layers matches.
        """
        layers, lists = further.pop("layers_to_transform", None), further.pop("layers_pattern", None)
        if layers is None:
            return pattern
        chosen = [layers] if isinstance(layers, int) else layers
        holders = rf"({'|'.join([lists] if isinstance(lists, str) else lists)})" if lists else r"[^.]*"
        found = []
        for name, _ in backbone.base_model.named_modules():
            number = re.search(rf"(^|\.){holders}\.(\d+)\.", name)
            if number and int(number[number.re.groups]) in chosen and re.fullmatch(pattern, name):
                found.append(name)
        if not found:
            raise UserError(f"method '{self.name}': no target module lies in layers_to_transform={layers}.")
        return found

    def _name(self, given: str) -> str:
        name = str(given).replace("-", "_")
        return self.aliases.get(name, name)


def _renamed(values: Mapping[str, Any], aliases: Mapping[str, str]) -> list[tuple[str, Any]]:
    """Names and values with aliases resolved; as pairs, so that a name given twice is noticed."""
    return [(aliases.get(str(name).replace("-", "_"), name), value) for name, value in values.items()]


def _extended(options: type[Any], kinds: Mapping[str, Any]) -> type[Any]:
    """The options class with further fields; every one that is chosen is also given, so defaults do not matter."""
    fields = [(name, kind, option(None, help="A field of PEFT's configuration.")) for name, kind in kinds.items()]
    return dataclasses.make_dataclass(options.__name__, fields, bases=(options,), frozen=True)


def _field(value: Any, kind: Any) -> Any:
    """Modules as names or an expression, nested configurations as objects; all else as it is."""
    members = typing.get_args(kind) or (kind,)
    if isinstance(value, str) and str in members and list[str] in members:
        return targets(value)
    nested: list[Any] = [member for member in members if dataclasses.is_dataclass(member)]
    return nested[0](**value) if nested and isinstance(value, dict) else value
