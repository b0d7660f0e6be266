"""Spiking-neuron kernels for PyTorch: the whole time loop fused, forward and back-propagation through time.

functional   the neurons as functions: (x_seq, v_init) -> (spike_seq, v)
nn           the neurons as modules, with state
surrogate    what stands for the derivative of a spike
reference    the same functions in plain PyTorch
convert      networks of SpikingJelly, snnTorch, Norse and Sinabs
compat       SpikingJelly's names, old and new

The operators behind them are torch.ops.snnkern.<neuron>_forward.
"""

from importlib.metadata import version as _version

from ._library import build_info, kernels

from . import functional, nn, reference, surrogate  # isort: skip  # the library first
from . import _dtensor, _vmap  # isort: skip  # noqa: F401  rules of the operators
from . import compat  # isort: skip
from .compat.convert import convert

__version__ = _version("snnkern")
__all__ = ["build_info", "compat", "convert", "functional", "kernels", "nn", "reference", "surrogate"]
