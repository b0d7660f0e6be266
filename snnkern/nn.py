"""The neurons as modules, with a state that they keep between calls."""

import torch

from ._generated.nn import *
from ._generated.nn import __all__ as _generated
from ._nn import MultiStep
from ._per_step import PerStep

__all__ = [*_generated, "MultiStep", "PerStep", "reset"]


def reset(net: torch.nn.Module) -> None:
    """Forgets the state of every neuron in a network: the next call starts afresh.

    Args:
        net: any module; neurons are found at any depth

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), snnkern.nn.LIF())
        >>> spike_seq = net(torch.rand(6, 2, 4))
        >>> snnkern.nn.reset(net)
        >>> net[1].v is None
        True
    """
    for module in net.modules():
        if isinstance(module, MultiStep):
            module.reset()
