"""The neurons as modules, with a state that they keep between calls; and what stands beside them in a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ._batch_norm import BatchNormNeuron
from ._generated.nn import *
from ._generated.nn import __all__ as _generated
from ._networks import for_each_neuron
from ._nn import MultiStep
from ._per_step import PerStep

__all__ = [*_generated, "BatchNormNeuron", "MultiStep", "PerStep", "detach", "reset"]

Network = torch.nn.Module | Sequence[Any] | Mapping[Any, Any]


def reset(net: Network) -> None:
    """Forgets the state of every neuron in a network: the next call starts afresh.

    Args:
        net: any module, scripted, loaded, frozen, compiled or distributed; or a list, tuple or dict of such

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), snnkern.nn.LIF())
        >>> spike_seq = net(torch.rand(6, 2, 4))
        >>> snnkern.nn.reset(net)
        >>> net[1].v is None
        True
    """
    for_each_neuron("reset", net, lambda state: None)


def detach(net: Network) -> None:
    """Keeps the state of every neuron in a network and cuts its gradient: truncated back-propagation through time.

    Args:
        net: as in `reset`

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), snnkern.nn.LIF())
        >>> first, then = torch.rand(6, 2, 4).chunk(2)
        >>> spike_seq = net(first)
        >>> snnkern.nn.detach(net)
        >>> net[1].v.requires_grad
        False
        >>> net(then).sum().backward()
    """
    for_each_neuron("detach", net, torch.Tensor.detach)
