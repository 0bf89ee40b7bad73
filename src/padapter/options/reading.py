"""Options from a recipe and from flags, and back into a recipe."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from padapter.errors import UserError
from padapter.options.fields import flag_of, own_first, refuse, split_method
from padapter.options.training import TrainOptions
from padapter.values import convert, names_close_to, read_yaml

T = TypeVar("T")


def options_from(cls: type[T], config: str | Path | None = None, overrides: dict[str, Any] | None = None) -> T:
    """Build options from a YAML recipe and values that win over it.

    Args:
        cls: one of the dataclasses above.
        config: a YAML file of ``field: value`` lines; relative paths in it start at the working folder.
        overrides: values by field name; ``None`` means not given.

    Returns:
        The validated options.

    Raises:
        UserError: for a file that cannot be read, an unknown key, a missing option or a bad value.
    """
    values: dict[str, Any] = {}
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    if config is not None:
        for name, value in read_yaml(config).items():
            if name not in known or not known[name].metadata["in_yaml"]:
                raise _unknown_key(config, name, [key for key, item in known.items() if item.metadata["in_yaml"]])
            values[name] = convert(value, hints[name], f"{config}: {name}")
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    for name, value in given.items():
        if name not in known:
            raise UserError(f"{cls.__name__} has no option {name!r}{names_close_to(name, list(known))}")
        given[name] = convert(value, hints[name], flag_of(known[name]))
    values.update(_merge_methods(values, given) if "method" in known else given)
    if config is not None and "config" in known:
        values["config"] = str(config)
    for item in known.values():
        needed = item.default is MISSING and item.default_factory is MISSING
        if needed and item.name not in values:
            raise refuse(flag_of(item), "is needed")
    return cls(**values)


def _merge_methods(recipe: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What was given, with the recipe's method options kept below it unless another method was named."""
    below, _ = split_method(str(recipe.get("method", TrainOptions.method)))
    name, inline = split_method(given.get("method", below))
    settings = given.get("method_options", {})
    for key in inline.keys() & settings.keys():
        if str(settings[key]) != inline[key]:
            raise refuse("--method", f"{key}={inline[key]} contradicts --set {key}={settings[key]}")
    if not given.keys() & {"method", "method_options"}:
        return given
    _, written = split_method(str(recipe.get("method", "")))
    kept = {**written, **recipe.get("method_options", {})} if name == below else {}
    return {**given, "method": name, "method_options": {**kept, **inline, **settings}}


def _unknown_key(config: str | Path, name: str, known: list[str]) -> UserError:
    return UserError(f"{config}: unknown key {name!r}{names_close_to(name, known)}")


def to_plain(options: Any) -> dict[str, Any]:
    """Options as plain values, for ``config.yaml``: what a recipe may hold."""
    values = asdict(options)
    return {item.name: values[item.name] for item in own_first(type(options)) if item.metadata["in_yaml"]}


def resume_config(cls: type[Any], given: dict[str, Any]) -> Path | None:
    """The run's own ``config.yaml`` when it is to be resumed, so that ``--resume --output RUN`` is enough."""
    if cls is not TrainOptions or not given.get("resume") or given.get("output") is None:
        return None
    config = Path(given["output"]) / "config.yaml"
    if not config.is_file() and given.get("task") is None:
        raise refuse("--resume", f"{given['output']} holds no run (there is no config.yaml)")
    return config if config.is_file() else None
