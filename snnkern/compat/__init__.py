"""snnkern with networks of other libraries.

convert        the neurons of SpikingJelly, snnTorch, Norse and Sinabs in a network become snnkern's: snnkern.convert
spikingjelly   snnkern's neurons under SpikingJelly's names, old and new: yesterday's model files run on a current torch
"""

from . import convert, spikingjelly

__all__ = ["convert", "spikingjelly"]
