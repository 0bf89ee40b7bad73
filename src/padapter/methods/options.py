"""Typed options of a method: one dataclass per method, filled from Python, YAML or command-line strings."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union

from padapter.errors import UserError

T = TypeVar("T")

_TRUE, _FALSE, _NONE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}, {"none", "null", ""}
_UNFIT = object()


def option(default: Any, help: str) -> Any:
    """A dataclass field with its documentation.

    Args:
        default: Value when the user says nothing.
        help: What the option does, for ``--help`` and the docs.

    Returns:
        The field.
    """
    return dataclasses.field(default=default, metadata={"help": help})


def require(condition: bool, message: str) -> None:
    """Raise ``UserError(message)`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


def parse_options(options: type[T], values: Mapping[str, Any] | Iterable[tuple[str, Any]], method: str) -> T:
    """Build a method's options from names and values; strings are converted to the option's type.

    Args:
        options: The dataclass.
        values: Option names ("-" and "_" are the same) and values, as a mapping or as pairs; strings are read as the
            option's type: true/false, numbers, none, words, items separated by commas, YAML for mappings.
        method: Name of the method, for messages.

    Returns:
        The options.

    Raises:
        UserError: If a name is unknown (the known ones are listed), given twice, or a value has the wrong type.
    """
    hints = typing.get_type_hints(options)
    known = [field.name for field in dataclasses.fields(options)]  # type: ignore[arg-type]
    chosen: dict[str, Any] = {}
    for given, value in values.items() if isinstance(values, Mapping) else values:
        name = str(given).replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise UserError(f"method '{method}' has no option '{given}'.{hint} Its options: {', '.join(known)}.")
        if name in chosen:
            raise UserError(f"method '{method}': option '{name}' is given twice.")
        chosen[name] = _convert(value, hints[name], f"method '{method}', option '{name}'")
    return options(**chosen)


def _convert(value: Any, kind: Any, where: str) -> Any:
    """Read ``value`` as ``kind``.

    A kind is bool, int, float, str, Literal, list, dict (a dataclass is given as one), or a union of these and None.
    """
    is_union = typing.get_origin(kind) in (Union, types.UnionType)
    members = sorted(typing.get_args(kind), key=_narrowness) if is_union else [kind]
    for member in members:
        converted = _read(value, member)
        if converted is not _UNFIT:
            return converted
    raise UserError(f"{where}: {value!r} is not {' or '.join(_spoken(member) for member in members)}.")


def _narrowness(kind: Any) -> int:
    """Where a type stands in the order of trying: "none" is None where allowed, never a text; a text is no list.

    The order in which Python lists the members of a union is not used: it depends on which union was made first.
    """
    order = (type(None), bool, int, float, Literal, str, list)
    plain = typing.get_origin(kind) or kind
    return order.index(plain) if plain in order else len(order)


def _read(value: Any, kind: Any) -> Any:
    """Return ``value`` as ``kind``, or ``_UNFIT``."""
    text = value.strip() if isinstance(value, str) else None
    if kind is type(None):
        return None if value is None or (text is not None and text.lower() in _NONE) else _UNFIT
    if kind is bool:
        if text is None:
            return value if isinstance(value, bool) else _UNFIT
        return text.lower() in _TRUE if text.lower() in _TRUE | _FALSE else _UNFIT
    if kind in (int, float):
        return _read_number(value, kind)
    if kind is str:
        return text or _UNFIT
    if typing.get_origin(kind) is Literal:
        allowed = {str(choice): choice for choice in typing.get_args(kind)}
        return allowed.get(str(value) if text is None else text, _UNFIT)
    if kind is list or typing.get_origin(kind) is list:
        return _read_list(value, *typing.get_args(kind))
    if kind is dict or typing.get_origin(kind) is dict or dataclasses.is_dataclass(kind):
        found = _read_yaml(text) if text is not None else value
        return dict(found) if isinstance(found, Mapping) else _UNFIT
    raise TypeError(f"options of type {kind} are not supported")


def _read_list(value: Any, kind: Any = str) -> Any:
    if isinstance(value, str):
        bracketed = value.strip().startswith("[")
        value = _read_yaml(value) if bracketed else [item for item in value.split(",") if item.strip()]
    if not isinstance(value, (list, tuple)):
        return _UNFIT
    if typing.get_origin(kind) is tuple:  # pairs, as in layer_replication
        return [tuple(item) for item in value] if all(isinstance(item, (list, tuple)) for item in value) else _UNFIT
    items = [_read(item, kind) for item in value]
    return _UNFIT if any(item is _UNFIT for item in items) else items


def _read_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return _UNFIT


def _read_number(value: Any, kind: type[int] | type[float]) -> Any:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return _UNFIT
    if kind is int and isinstance(value, float):
        return int(value) if value.is_integer() else _UNFIT
    try:
        return kind(value)
    except ValueError:
        return _UNFIT


def _spoken(kind: Any) -> str:
    """Name a type as a user would."""
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(kind))
    if dataclasses.is_dataclass(kind):
        return "a mapping"
    kind = typing.get_origin(kind) or kind
    names = {
        list: "a list",
        dict: "a mapping",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        type(None): "none",
    }
    return names[kind]
