"""The neurons as functions: (x_seq, v_init, parameters) -> (spike_seq, v), fused over time, with gradients."""

from ._generated.functional import *
from ._generated.functional import __all__ as __all__
