"""What ``--method`` can be: one file and one registry line each, and every other tuner of PEFT by its name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from padapter.errors import UserError
from padapter.methods.adapter import Adapter
from padapter.methods.any_peft import SPELLINGS, peft_methods, peft_types
from padapter.methods.base import Method, trainable_parameters
from padapter.methods.full import Full
from padapter.methods.lora import Lora
from padapter.methods.p_adapter import PAdapter
from padapter.methods.peft_method import PeftMethod, adapter_type
from padapter.methods.prefix import Prefix

METHODS: dict[str, Method[Any]] = {method.name: method for method in (PAdapter(), Adapter(), Lora(), Prefix(), Full())}
"""All methods by name."""

__all__ = ["METHODS", "Method", "PeftMethod", "get_method", "method_of", "peft_methods", "trainable_parameters"]


def get_method(name: str) -> Method[Any]:
    """Look a method up.

    Args:
        name: One of ``METHODS``, or the lower-case type of a PEFT tuner, e.g. ``ia3``; "_" and "-" are the same.

    Returns:
        The method.

    Raises:
        UserError: If there is none of that name.
    """
    wanted = name.replace("_", "-").lower()
    if wanted in METHODS:
        return METHODS[wanted]
    if wanted in SPELLINGS:
        raise UserError(f"unknown method '{name}'; it is asked for with --method {SPELLINGS[wanted]}")
    types = peft_types()
    if types is not None and wanted not in types:
        raise UserError(
            f"unknown method '{name}'.{_meant(wanted, [*METHODS, *types])} Known methods: {', '.join(METHODS)}; and "
            "tuners of PEFT: `padapter methods` lists them."
        )
    others = peft_methods()
    if wanted in others:
        return others[wanted]
    raise UserError(
        f"unknown method '{name}'.{_meant(wanted, [*METHODS, *others])} Known methods: {', '.join(METHODS)}; and of "
        f"PEFT: {', '.join(others)}."
    )


def _meant(wanted: str, known: list[str]) -> str:
    close = difflib.get_close_matches(wanted, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def method_of(directory: str | Path) -> Method[Any]:
    """Find the method that wrote a folder.

    Args:
        directory: A folder with ``adapter_config.json`` (a PEFT adapter) or ``config.json`` (a whole model).

    Returns:
        The method that can load it.

    Raises:
        UserError: If it is neither, or an adapter of a type no method here reads.
    """
    folder = Path(directory)
    if (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        return METHODS[Full.name]
    found = adapter_type(folder)
    own = {method.peft_type: method for method in METHODS.values() if isinstance(method, PeftMethod)}
    known: dict[str, Method[Any]] = {**own, **{method.peft_type: method for method in peft_methods().values()}}
    if found not in known:
        raise UserError(f"adapter '{folder}' is of type {found}; padapter reads {', '.join(sorted(known))}.")
    return known[found]
