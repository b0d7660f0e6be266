"""What waits until another module has been imported, since importing that takes longer than all the rest."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


class _Finder(importlib.abc.MetaPathFinder):
    """Calls back once, when a module has been imported."""

    def __init__(self, module: str, callback: Callable[[], None]) -> None:
        self.module, self.callback = module, callback

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            loader, callback = spec.loader, self.callback
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                callback()

            loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def when_imported(module: str, callback: Callable[[], None]) -> None:
    """Calls back now, if the module has been imported, or else when it is."""
    if module in sys.modules:
        callback()
    else:
        sys.meta_path.insert(0, _Finder(module, callback))
