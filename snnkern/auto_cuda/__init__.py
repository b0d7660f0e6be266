"""Kernels of a user's own, made of text and run at once, on the GPU or on the CPU.

base            a kernel from a few lines of core
cfunction       code for elementary functions and surrogate gradients, for float and half2
neuron_kernel   neurons over time: forward, back-propagation, and the autograd Functions over them
"""

from . import base, cfunction, neuron_kernel

__all__ = ["base", "cfunction", "neuron_kernel"]
