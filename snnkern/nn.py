"""The neurons as modules, with a state that they keep between calls."""

import torch

from ._generated.nn import *
from ._generated.nn import __all__ as _generated
from ._nn import MultiStep
from ._per_step import PerStep

__all__ = [*_generated, "MultiStep", "PerStep", "reset"]


def reset(net: torch.nn.Module) -> None:
    """Forgets the state of every neuron in a network."""
    for module in net.modules():
        if isinstance(module, MultiStep):
            module.reset()
