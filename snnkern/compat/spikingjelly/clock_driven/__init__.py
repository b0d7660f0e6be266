"""The names of spikingjelly.clock_driven, which came before activation_based."""

import sys

from .. import base, encoding, functional, layer, neuron, surrogate

__all__ = ["base", "encoding", "functional", "layer", "neuron", "surrogate"]

# The modules are those of snnkern.compat.spikingjelly, and are imported by these names too.
sys.modules.update({f"{__name__}.{name}": globals()[name] for name in __all__})
