"""The PEFT methods of this package.

`TUNERS` maps their names to their configuration classes; the conformance suite goes through it. A new method is a new
folder and one line in ``registry.py``.

An adapter is loaded by the name of its method, so a process that loads one must have called `register`
(``import padapter`` sees to it). Adapters saved by these methods survive ``PeftModel.from_pretrained`` and
transformers' ``load_adapter`` under any adapter name; names must not have dots, and should not occur inside module
names of the model.
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Make every tuner known to PEFT; calling it again changes nothing."""
    # Imported here because `import padapter` has this called from within the import of peft, which may itself have
    # been started by an import further down in this file.
    from padapter.tuners.registration import guard_merging_beside_our_adapters, register_tuner
    from padapter.tuners.registry import METHODS

    for tuner in METHODS:
        register_tuner(tuner)
    guard_merging_beside_our_adapters()


import peft as _peft  # noqa: E402, F401  (before our modules, which need all of it)

from padapter.tuners.batches import mixed_batch  # noqa: E402
from padapter.tuners.bottleneck import BottleneckConfig  # noqa: E402
from padapter.tuners.p_adapter import MessagePassing, PAdapterConfig, register_message_passing  # noqa: E402
from padapter.tuners.registry import METHODS as _METHODS  # noqa: E402

TUNERS: dict[str, type[Any]] = {tuner.name: tuner.config for tuner in _METHODS}

__all__ = [
    "TUNERS",
    "BottleneckConfig",
    "MessagePassing",
    "PAdapterConfig",
    "mixed_batch",
    "register",
    "register_message_passing",
]
