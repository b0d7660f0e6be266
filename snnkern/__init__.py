"""Spiking-neuron kernels for PyTorch: the whole time loop fused, forward and back-propagation through time.

functional   the neurons as functions: (x_seq, v_init) -> (spike_seq, v)
nn           the neurons as modules, with state
surrogate    what stands for the derivative of a spike
reference    the same functions in plain PyTorch
convert      networks of SpikingJelly, snnTorch, Norse and Sinabs
fuse         BatchNorm and neuron as one operator
packed_spikes  what autograd keeps of spikes, as bits
compat       SpikingJelly's names, old and new
define_*     neurons and surrogates of your own, from their equations
auto_cuda    kernels of your own, as text; jit compiles and runs them

The operators behind them are torch.ops.snnkern.<neuron>_forward.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from ._library import build_info, kernels
from ._memory import keep_memory

from . import functional, nn, reference, surrogate  # isort: skip  # the library first
from . import _dtensor, _runtime, _vmap  # isort: skip  # noqa: F401  rules of the operators, and their compiler
from . import compat  # isort: skip
from ._fuse import fuse  # isort: skip
from ._packed import packed_spikes  # isort: skip
from .compat.convert import convert

if _TYPE_CHECKING:
    from . import auto_cuda, jit
    from .define import define_neuron, define_surrogate

__version__ = _version("snnkern")
cmake_prefix_path = __path__[0]
"""Where CMake finds snnkern, for programs in C++."""
__all__ = [
    "auto_cuda",
    "build_info",
    "cmake_prefix_path",
    "compat",
    "convert",
    "define_neuron",
    "define_surrogate",
    "functional",
    "fuse",
    "jit",
    "keep_memory",
    "kernels",
    "nn",
    "packed_spikes",
    "reference",
    "surrogate",
]


def __getattr__(name: str) -> _Any:
    """Imports what a network does not need when it is first asked for."""
    if name in ("define_neuron", "define_surrogate"):
        return getattr(_import_module(".define", __name__), name)
    if name in ("auto_cuda", "jit"):
        return _import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
