"""Flags made from the dataclasses of :mod:`padapter.options`, so that help, YAML and Python cannot disagree."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field
from typing import Annotated, Any, Optional, TypeVar, get_args, get_type_hints

import typer

from padapter.errors import UserError
from padapter.options import flag_of, options_from, own_first, parse_settings, resume_config, topic_of

T = TypeVar("T")

USER_ERROR, INTERRUPTED = 2, 130
# Options that fit on one page of a terminal.
_FEW = 15


def command(cls: type[T], handler: Callable[[T], None]) -> Callable[..., None]:
    """A function that typer can make a command of.

    Its parameters are the fields of ``cls``, all of them optional for typer: what is missing may stand in a recipe,
    and :func:`padapter.options.options_from` says what is not there either.

    Args:
        cls: a dataclass of :mod:`padapter.options`.
        handler: called with the validated options; its docstring becomes the help text.
    """

    def run(**given: Any) -> None:
        values = {name: _settings(name, value) for name, value in given.items()}
        config = values.pop("config", None) or resume_config(cls, values)
        handler(options_from(cls, config, values))

    wanted = parameters(cls)
    run.__doc__ = handler.__doc__
    run.__annotations__ = {item.name: item.annotation for item in wanted}
    # Typer reads the signature; mypy knows no such attribute of functions.
    setattr(run, "__signature__", inspect.Signature(wanted))  # noqa: B010
    return guarded(run)


def parameters(cls: type[Any]) -> list[inspect.Parameter]:
    """One keyword parameter per field, annotated for typer; a command with many is shown by topic."""
    hints, items = get_type_hints(cls), own_first(cls)
    by_topic = len(items) > _FEW
    return [
        inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(item, hints, topic_of(item.name) if by_topic else None),
        )
        for item in items
    ]


def guarded(run: Callable[..., None]) -> Callable[..., None]:
    """Turn a user's mistake into one message and exit code 2, and Ctrl-C into 130; anything else is a bug and shows."""

    @functools.wraps(run)
    def safe(*args: Any, **kwargs: Any) -> None:
        try:
            run(*args, **kwargs)
        except UserError as problem:
            print(f"error: {problem}", file=sys.stderr)
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt as stop:
            print(f"\n{stop or 'interrupted'}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None

    return safe


def _annotation(item: Field[Any], hints: dict[str, Any], topic: str | None) -> Any:
    metadata, kind = item.metadata, _kind(hints[item.name])
    text = _help(item)
    if metadata["positional"]:
        # `Optional` written out: typer on Python 3.10 reads it, and `X | None` here would be a run-time expression.
        return Annotated[Optional[kind], typer.Argument(help=text, metavar=metadata["metavar"], show_default=False)]  # noqa: UP045
    flag = flag_of(item)
    if kind is bool and metadata["in_yaml"]:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    flags = [flag, *filter(None, [metadata.get("short")])]
    kind = list[str] if kind is dict else kind
    metavar = None if kind is bool else metadata["metavar"]
    shown = typer.Option(*flags, help=text, metavar=metavar, show_default=False, rich_help_panel=topic)
    return Annotated[Optional[kind], shown]  # noqa: UP045


def _kind(hint: Any) -> Any:
    """The type of a field without ``None`` and without what is inside a dictionary."""
    options = [arg for arg in get_args(hint) if arg is not type(None)]
    if type(None) in get_args(hint) and len(options) == 1:
        return options[0]
    return dict if getattr(hint, "__origin__", None) is dict else hint


def _help(item: Field[Any]) -> str:
    text = str(item.metadata["help"])
    if item.default is MISSING and item.default_factory is MISSING:
        return f"{text} (required)"
    if item.default in (MISSING, None, False) or "(default:" in text:
        return text
    shown = "on" if item.default is True else item.default
    return f"{text} (default: {shown})"


def _settings(name: str, value: Any) -> Any:
    """``--set a=1 --set b=2`` arrives as a list; not given, typer makes it an empty one."""
    if name != "method_options":
        return value
    return parse_settings(value) if value else None
