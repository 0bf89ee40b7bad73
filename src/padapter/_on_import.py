"""Do something in the moment another package is imported.

``import padapter`` must make PEFT know our methods, but must not cost the seconds that importing PEFT and torch takes:
``padapter --help`` answers at once. So the registration waits for PEFT.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def call_after_import(package: str, module: str, function: str) -> None:
    """Call ``module.function()`` as soon as ``package`` has been imported: now, if it already has.

    Args:
        package: the package waited for, e.g. ``"peft"``.
        module: the module of ours with the function; imported only then.
        function: its name; called without arguments, once.
    """
    if package in sys.modules:
        getattr(importlib.import_module(module), function)()
    else:
        sys.meta_path.insert(0, _Finder(package, module, function))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds ``package`` the ordinary way and has our loader run after its own.

    It stays in place until the package has been executed: a mere look (``importlib.util.find_spec``, as in
    transformers' ``is_peft_available``) must not use it up.
    """

    def __init__(self, package: str, module: str, function: str) -> None:
        self.package, self.module, self.function = package, module, function
        self._looking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.package or self._looking:
            return None
        self._looking = True  # the look below must not find us again
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking = False
        if spec is None or spec.loader is None:
            return None
        spec.loader = _Loader(spec.loader, self)
        return spec

    def done(self) -> None:
        """Leave, and call what was to be called."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        getattr(importlib.import_module(self.module), self.function)()


class _Loader(importlib.abc.Loader):
    """Another loader, then a call."""

    def __init__(self, loader: importlib.abc.Loader, finder: _Finder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            # From here on the package looks as if we had never been there: its own loader reads its own files.
            spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._finder.done()
