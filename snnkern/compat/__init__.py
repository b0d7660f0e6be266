"""snnkern with networks of other libraries.

convert        the neurons of SpikingJelly, snnTorch, Norse and Sinabs in a network become snnkern's: snnkern.convert
nir            NIR, the exchange format of neuromorphic libraries: out and in
onnx           ONNX: what torch.onnx.export needs to know of the neurons
spikingjelly   snnkern's neurons under SpikingJelly's names, old and new: yesterday's model files run on a current torch
"""

from . import convert, nir, onnx, spikingjelly

__all__ = ["convert", "nir", "onnx", "spikingjelly"]
