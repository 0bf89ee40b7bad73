"""Checkpoints in the formats of other projects, made model folders that `padapter train` and transformers read.

A format is one file here and one line of :data:`FORMATS`.
"""

from __future__ import annotations

from typing import Any

from padapter.checkpoints import blip, mplug
from padapter.checkpoints.base import Conversion, ConvertOptions, Format
from padapter.errors import UserError
from padapter.values import names_close_to

FORMATS: dict[str, Format] = {
    "blip": Format("Convert a checkpoint of the official BLIP code (.pth).", blip.BlipOptions, blip.convert),
    "mplug": Format("Convert a checkpoint of the official mPLUG code (.pth).", mplug.MPlugOptions, mplug.convert),
}
"""Name on the command line -> format."""


def convert_checkpoint(name: str, **options: Any) -> Conversion:
    """Convert a checkpoint: ``convert_checkpoint("blip", checkpoint="model.pth", output="models/blip")``.

    Args:
        name: one of :data:`FORMATS`.
        options: the fields of its options.

    Raises:
        UserError: for an unknown format, a wrong option, or a file that cannot be converted.
    """
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}{names_close_to(name, list(FORMATS))}")
    found = FORMATS[name]
    return found.convert(found.options(**options))


__all__ = ["FORMATS", "Conversion", "ConvertOptions", "Format", "convert_checkpoint"]
