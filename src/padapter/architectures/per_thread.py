"""State that belongs to one call of a model, although modules are shared between threads."""

from __future__ import annotations

import threading
from typing import Any

import torch


class PerThread:
    """An attribute with one value per thread, None where none was set.

    For what one call leaves for the next within a forward pass: two threads may run the same model at once.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = f"_per_thread_{name}"

    def __get__(self, instance: Any, owner: type) -> Any:
        return instance.__dict__.get(self._key, {}).get(_thread())

    def __set__(self, instance: Any, value: Any) -> None:
        values = instance.__dict__.setdefault(self._key, {})
        if value is None:
            values.pop(_thread(), None)
        else:
            values[_thread()] = value


def _thread() -> int:
    # A compiled graph belongs to one call; asking for the thread would break it in two.
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
