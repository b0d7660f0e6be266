"""SpikingJelly's names on snnkern's operators, so that model files written for it run unchanged.

clock_driven        neuron, surrogate, functional, layer, encoding, base: the names up to SpikingJelly 0.0.0.0.12
activation_based    the same, from 0.0.0.0.14 to 2
cext.neuron         the neurons of its old C++ extension

They have what model files use: neurons, layers with a step mode, containers, encoders and the functions that reset and set
up a network, with the arguments of all versions, in their orders; `backend=` is accepted and has no effect. install() puts
them where `import spikingjelly` finds them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

__all__ = ["install", "uninstall"]

ROOT = "spikingjelly"
PACKAGES = ("activation_based", "clock_driven", "cext")
# What install() has put away: name -> the module before, or None; the attributes of the root likewise.
_modules: dict[str, ModuleType | None] = {}
_attributes: dict[str, Any] = {}


def install(replace: bool = False) -> None:
    """Makes `import spikingjelly.clock_driven`, `.activation_based` and `.cext` find these modules, in this process.

    Where SpikingJelly is installed, its own packages come first: only those that it lacks, as version 2 lacks clock_driven,
    are added.

    Args:
        replace: take the place of SpikingJelly's own packages; its others, as spikingjelly.datasets, stay

    Example:
        >>> snnkern.compat.spikingjelly.install(replace=True)
        >>> from spikingjelly.clock_driven.neuron import MultiStepLIFNode
        >>> MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")(torch.ones(4, 1)).flatten().tolist()
        [0.0, 0.0, 0.0, 0.0]
        >>> snnkern.compat.spikingjelly.uninstall()
    """
    installed = importlib.util.find_spec(ROOT) is not None
    here = sys.modules[__name__]
    if not installed:
        _put(ROOT, here)
    root = importlib.import_module(ROOT)
    for package in PACKAGES:
        if installed and not replace and importlib.util.find_spec(f"{ROOT}.{package}") is not None:
            continue
        ours = importlib.import_module(f"{__name__}.{package}")
        for name in [n for n in sys.modules if n.startswith(f"{ROOT}.{package}.")]:
            _put(name, None)
        _put(f"{ROOT}.{package}", ours)
        for name, module in vars(ours).items():
            if name in ours.__all__:
                _put(f"{ROOT}.{package}.{name}", module)
        if root is not here:
            _attributes.setdefault(package, vars(root).get(package))
            setattr(root, package, ours)


def uninstall() -> None:
    """Undoes install(): `import spikingjelly` finds what it found before.

    Example:
        >>> import sys
        >>> snnkern.compat.spikingjelly.install()
        >>> "spikingjelly.clock_driven" in sys.modules
        True
        >>> snnkern.compat.spikingjelly.uninstall()
        >>> "spikingjelly.clock_driven" in sys.modules
        False
    """
    root = sys.modules.get(ROOT)
    for name, before in _attributes.items():
        if before is None:
            delattr(root, name)
        else:
            setattr(root, name, before)
    for name, module in _modules.items():
        _set(name, module)
    _attributes.clear()
    _modules.clear()


def _put(name: str, module: ModuleType | None) -> None:
    _modules.setdefault(name, sys.modules.get(name))
    _set(name, module)


def _set(name: str, module: ModuleType | None) -> None:
    if module is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = module
