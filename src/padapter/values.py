"""Text and YAML values turned into the types that a dataclass declares, with errors that name the option."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from padapter.errors import UserError

_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def names_close_to(name: str, known: Sequence[str]) -> str:
    """A hint for a name that is not known: ``"; did you mean 'mu'? (known: ...)"``."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    meant = f"; did you mean {' or '.join(repr(item) for item in close)}?" if close else ""
    return f"{meant} (known: {', '.join(sorted(known))})" if known else meant


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        UserError: naming the file and the line.
    """
    import yaml

    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise UserError(f"{path}: cannot read the recipe ({problem.strerror})") from problem
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(problem, "problem", None) or "not UTF-8 text"
        raise UserError(f"{path}{where}: not valid YAML ({reason})") from problem
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected 'option: value' lines, found {type(loaded).__name__}")
    return {str(name): value for name, value in loaded.items()}


def convert(value: Any, hint: Any, where: str) -> Any:
    """Convert ``value`` (text from a flag, or a YAML value) to the type ``hint``.

    Args:
        value: what was given.
        hint: ``int``, ``float``, ``bool``, ``str``, ``dict``, ``list[...]`` of these, or a union of these and
            ``None``.
        where: the flag, or file and key, that the message names.

    Returns:
        The converted value; exact types only, so ``True`` is no number and ``1.5`` no integer.

    Raises:
        UserError: when the value cannot be of that type.
    """
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, get_args(hint), where)
    if hint is dict or origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(value, "a mapping of names to values", where)
        return {str(name): item for name, item in value.items()}
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise _wrong(value, "a list", where)
        return [convert(item, get_args(hint)[0], where) for item in value]
    converters = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}
    if hint not in converters:
        raise TypeError(f"{where}: no conversion to {hint!r}")
    return converters[hint](value, where)


def _convert_union(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    if type(None) in hints:
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        hints = tuple(hint for hint in hints if hint is not type(None))
    # Text is the widest type: tried last, so that "8" for `str | int` is the number.
    ordered = sorted(hints, key=lambda hint: hint is str)
    if any(type(value) is hint for hint in ordered):
        return value
    problems = []
    for hint in ordered:
        try:
            return convert(value, hint, where)
        except UserError as problem:
            problems.append(problem)
    raise problems[0]


def _to_bool(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if isinstance(value, str) and word in _TRUE | _FALSE:
        return word in _TRUE
    raise _wrong(value, "true or false", where)


def _to_int(value: Any, where: str) -> int:
    if isinstance(value, bool):
        raise _wrong(value, "an integer", where)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, (int, str)):
        try:
            return int(value)
        except ValueError:
            pass
    raise _wrong(value, "an integer", where)


def _to_float(value: Any, where: str) -> float:
    if not isinstance(value, bool) and isinstance(value, (int, float, str)):
        try:
            return float(value)
        except ValueError:
            pass
    raise _wrong(value, "a number", where)


def _to_str(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise _wrong(value, "text", where)


def _wrong(value: Any, wanted: str, where: str) -> UserError:
    return UserError(f"{where}: expected {wanted}, got {value!r}")
