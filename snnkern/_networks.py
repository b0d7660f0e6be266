"""Every neuron of a network, however it is wrapped: for snnkern.nn.reset and detach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ._nn import MultiStep


def for_each_neuron(name: str, net: Any, change: Callable[[Tensor], Tensor | None]) -> None:
    """Calls the method of this name of every neuron in `net`; where a frozen one has it no more, changes its states."""
    if isinstance(net, torch.nn.Module):
        for module in net.modules():
            if isinstance(module, MultiStep):
                getattr(module, name)()
            elif isinstance(module, torch.jit.ScriptModule):
                _scripted(name, module._c, change)
    elif isinstance(net, (list, tuple, Mapping)):
        for part in net.values() if isinstance(net, Mapping) else net:
            for_each_neuron(name, part, change)
    else:
        raise TypeError(
            f"snnkern.nn.{name}: net must be a torch.nn.Module, or a list, tuple or dict of such, got {type(net).__name__}"
        )


def _scripted(name: str, module: Any, change: Callable[[Tensor], Tensor | None]) -> None:
    """The same for TorchScript's own modules: torch.jit.freeze hides them from Python."""
    type_ = module._type()
    attributes = {key for key in ("v", "v_seq")}
    raise NotImplementedError
