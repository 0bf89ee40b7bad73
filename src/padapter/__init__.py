"""p-Laplacian adapters and bottleneck adapters for vision-language models, as native PEFT methods.

``import padapter`` registers ``PAdapterConfig`` and ``BottleneckConfig`` with ``peft``. It costs nothing until ``peft``
itself is imported: the registration then happens in the same moment, so nobody can meet a PEFT without the two methods.

    from peft import get_peft_model
    from padapter import PAdapterConfig

    model = get_peft_model(model, PAdapterConfig(p=1.5))
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

from padapter import _on_import

if TYPE_CHECKING:
    from padapter.errors import UserError
    from padapter.functional import p_laplacian_attention
    from padapter.tuners import BottleneckConfig, PAdapterConfig

__version__ = metadata.version("padapter")

__all__ = ["BottleneckConfig", "PAdapterConfig", "UserError", "__version__", "p_laplacian_attention"]

_HOMES = {
    "BottleneckConfig": "padapter.tuners",
    "PAdapterConfig": "padapter.tuners",
    "UserError": "padapter.errors",
    "p_laplacian_attention": "padapter.functional",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'padapter' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


_on_import.call_after_import("peft", "padapter.tuners", "register")
for _module, _function in (
    ("configuration_auto", "register_config"),
    ("tokenization_auto", "register_tokenizer"),
    ("processing_auto", "register_processor"),
):
    _on_import.call_after_import(f"transformers.models.auto.{_module}", "padapter.models.mplug.registration", _function)
