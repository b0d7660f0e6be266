"""Spiking-neuron kernels for PyTorch: the whole time loop fused, forward and back-propagation through time.

functional   the neurons as functions: (x_seq, v_init) -> (spike_seq, v)
nn           the neurons as modules, with state
surrogate    what stands for the derivative of a spike
reference    the same functions in plain PyTorch

The operators behind them are torch.ops.snnkern.<neuron>_forward.
"""

from importlib.metadata import version as _version

from ._library import build_info, kernels
from ._memory import keep_memory

from . import functional, nn, reference, surrogate  # isort: skip  # the library first
from . import _dtensor, _vmap  # isort: skip  # noqa: F401  rules of the operators

__version__ = _version("snnkern")
__all__ = ["build_info", "functional", "keep_memory", "kernels", "nn", "reference", "surrogate"]
