"""The neurons as modules, with a state that they keep between calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ._generated.nn import *
from ._generated.nn import __all__ as _generated
from ._networks import for_each_neuron
from ._nn import MultiStep
from ._per_step import PerStep

__all__ = [*_generated, "MultiStep", "PerStep", "detach", "reset"]

Network = torch.nn.Module | Sequence[Any] | Mapping[Any, Any]


def reset(net: Network) -> None:
    """Forgets the state of every neuron in a network, so that its next call starts afresh.

    It may be scripted, loaded, frozen, compiled or distributed, or a list, tuple or dict of networks.
    """
    for_each_neuron("reset", net, lambda state: None)


def detach(net: Network) -> None:
    """Keeps the state of every neuron in a network, as in `reset`, and cuts its gradient.

    Called between the parts of a sequence, it truncates back-propagation through time to the last part.
    """
    for_each_neuron("detach", net, torch.Tensor.detach)
