"""The neurons of snnkern.functional in plain PyTorch: the same equations, one step at a time. Every test's oracle."""

from ._generated.reference import *
from ._generated.reference import __all__ as __all__
