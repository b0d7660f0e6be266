"""The surrogates: frozen dataclasses with their parameters, e.g. ATan(alpha=2.0) or Sigmoid(alpha=4.0, spiking=False)."""

from ._generated.surrogate import *
from ._generated.surrogate import __all__ as _generated
from ._surrogate import Surrogate

__all__ = [*_generated, "Surrogate"]
