"""The neurons as functions: (x_seq, v_init, parameters) -> (spike_seq, v), fused over time, with gradients; and with a BatchNorm
in front, batch_norm_<neuron>, as one operator."""

from ._generated.batch_norm import *
from ._generated.batch_norm import __all__ as _normed
from ._generated.functional import *
from ._generated.functional import __all__ as _plain

__all__ = [*_plain, *_normed]
