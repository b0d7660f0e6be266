"""The names of spikingjelly.cext."""

from . import neuron

__all__ = ["neuron"]
