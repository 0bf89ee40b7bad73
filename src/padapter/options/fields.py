"""What the options of every command are made of: fields that know their help, choices and flag, and their checks."""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, field, fields
from typing import Any

from padapter.errors import UserError

NEVER, EPOCH = "never", "epoch"


#: What the name of a split may be: the end of the help of every option that takes one.
SPLIT_NAMES = "train, validation, test or a benchmark's own name; a file is the split itself."


def option(
    default: Any = MISSING,
    *,
    help: str,
    metavar: str | None = None,
    choices: tuple[str, ...] | None = None,
    flag: str | None = None,
    in_yaml: bool = True,
    positional: bool = False,
    short: str | None = None,
) -> Any:
    """A dataclass field that also carries what the command line and the YAML reader need to know.

    Args:
        default: value when the option is not given; the type ``dict`` stands for an empty one.
        help: one sentence, shown by ``--help``.
        metavar: the placeholder that ``--help`` shows instead of the type.
        choices: the accepted words, checked by :func:`check_choices`.
        flag: the flag's name where it is not the field's name with dashes.
        in_yaml: whether a recipe may set it.
        positional: on the command line a plain word instead of a flag.
        short: a flag of one letter besides the other, e.g. ``-o``.
    """
    metadata = {
        "help": help,
        "metavar": metavar,
        "choices": choices,
        "flag": flag,
        "in_yaml": in_yaml,
        "positional": positional,
        "short": short,
    }
    if default is dict:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def flag_of(item: Field[Any]) -> str:
    """The flag of a field: ``learning_rate`` is ``--learning-rate``; of a positional one its placeholder."""
    if item.metadata.get("positional"):
        return str(item.metadata.get("metavar") or item.name.upper())
    return item.metadata.get("flag") or "--" + item.name.replace("_", "-")


def own_first(cls: type[Any]) -> list[Field[Any]]:
    """The fields of a dataclass in reading order: its own before those it inherits."""
    classes = {
        name: depth
        for depth, base in reversed(list(enumerate(cls.__mro__)))
        for name in vars(base).get("__annotations__", {})
    }
    return sorted(fields(cls), key=lambda item: classes[item.name])


def refuse(flag: str, message: str) -> UserError:
    """The error for one option, always of the form ``--flag: what is wrong``."""
    return UserError(f"{flag}: {message}")


def check_choices(options: Any) -> None:
    """Refuse a word that is not among the choices of its field.

    Raises:
        UserError: naming the flag and the accepted words.
    """
    for item in fields(options):
        choices, value = item.metadata.get("choices"), getattr(options, item.name)
        if choices and value is not None and value not in choices:
            raise refuse(flag_of(item), f"{value!r} is not one of {', '.join(choices)}")


def check_at_least(options: Any, least: float, *names: str, exclusive: bool = False) -> None:
    """Refuse numbers below ``least`` (or equal to it, if ``exclusive``); ``None`` means not given.

    Raises:
        UserError: naming the flag and the bound.
    """
    for name in names:
        value = getattr(options, name)
        if value is None:
            continue
        bad = not math.isfinite(value) or value < least or (exclusive and value == least)
        if bad:
            relation = "greater than" if exclusive else "at least"
            raise refuse("--" + name.replace("_", "-"), f"must be {relation} {least:g}, got {value}")


def check_every(flag: str, value: str) -> None:
    """Check a rhythm: ``epoch``, ``never`` or a positive number of optimizer steps.

    Raises:
        UserError: naming the flag.
    """
    if value in (EPOCH, NEVER) or (value.isdecimal() and int(value) > 0):
        return
    raise refuse(flag, f"{value!r} is neither '{EPOCH}', '{NEVER}' nor a positive number of steps")


def check_augmentation(text: str, cache_features: bool) -> None:
    """Check a list of operations on training pictures, and that no features are to be kept beside it.

    Raises:
        UserError: naming ``--augment``.
    """
    if text == "none":
        return
    from padapter.data.augment import parse_augmentation  # with Pillow, which --help does without

    if parse_augmentation(text) is not None and cache_features:
        raise refuse(
            "--augment",
            "contradicts --cache-features: a picture that is another one in every epoch has no features to keep; give "
            "one of the two",
        )


def split_method(text: str) -> tuple[str, dict[str, str]]:
    """Split ``p-adapter:p=1.25,mu=0.1`` into the method's name and its options as text.

    Raises:
        UserError: for an option without ``=`` or one given twice.
    """
    name, _, rest = text.partition(":")
    pairs = [part for part in rest.split(",") if part.strip()]
    return name.strip(), parse_settings(pairs, "--method")


def parse_settings(pairs: list[str] | tuple[str, ...], flag: str = "--set") -> dict[str, str]:
    """Turn ``["p=1.25", "mu=0.1"]`` into a dictionary of texts.

    Raises:
        UserError: for an item without ``=`` or a name given twice.
    """
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name:
            raise refuse(flag, f"expected NAME=VALUE, got {pair!r}")
        name = name.replace("-", "_")
        if name in settings:
            raise refuse(flag, f"{name} is given twice")
        settings[name] = value
    return settings
