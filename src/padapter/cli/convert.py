"""``padapter convert FORMAT``: one command per registered format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from padapter.checkpoints import FORMATS, Format
from padapter.cli.flags import command
from padapter.cli.handlers import prepare

convert = typer.Typer(
    help="Convert a checkpoint of another project into a model folder that training reads.", no_args_is_help=True
)


def _handler(chosen: Format) -> Callable[[Any], None]:
    def run(options: Any) -> None:
        prepare()
        print(chosen.convert(options).format())

    run.__doc__ = chosen.summary
    return run


for _name, _format in FORMATS.items():
    convert.command(_name)(command(_format.options, _handler(_format)))

__all__ = ["convert"]
