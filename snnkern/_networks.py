"""Every neuron of a network, however it is wrapped: for snnkern.nn.reset and detach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ._nn import MultiStep


class Foreign:
    """Base of the neurons of snnkern.compat, where other libraries may mean something else by `reset` and `detach`."""

    def _reset_states(self) -> None:
        raise NotImplementedError

    def _detach_states(self) -> None:
        raise NotImplementedError

    @property
    def _places(self) -> dict[str, dict[str, Any]]:
        """Where the states are, beside other things that a call leaves as they are."""
        return {name: vars(self)[name] for name in ("_buffers", "_memories") if name in vars(self)}

    @property
    def _kept(self) -> dict[tuple[str, str], Any]:
        return {(place, name): value for place, values in self._places.items() for name, value in values.items()}

    @_kept.setter
    def _kept(self, states: Mapping[tuple[str, str], Any]) -> None:
        for (place, name), value in states.items():
            vars(self)[place][name] = value

    def _kept_names(self) -> list[tuple[str, str]]:
        return list(self._kept)

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle has the values of the states, not the graph that made them.
        return without_graph(vars(self)) | {name: without_graph(values) for name, values in self._places.items()}


def without_graph(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same, where a tensor that autograd has made is its values alone."""
    return {k: v.detach() if isinstance(v, Tensor) and not v.is_leaf else v for k, v in values.items()}


def for_each_neuron(method: str, net: Any, change: Callable[[Tensor], Tensor | None]) -> None:
    """Calls a method of every neuron in a network; where a frozen neuron has lost it, changes its states."""
    if isinstance(net, torch.nn.Module):
        for module in net.modules():
            if isinstance(module, MultiStep):
                getattr(module, method)()
            elif isinstance(module, Foreign):
                getattr(module, f"_{method}_states")()
            elif isinstance(module, torch.jit.ScriptModule):
                _scripted(method, module._c, change)
    elif isinstance(net, (list, tuple, Mapping)):
        for part in net.values() if isinstance(net, Mapping) else net:
            for_each_neuron(method, part, change)
    else:
        raise TypeError(
            f"snnkern.nn.{method}: net must be a torch.nn.Module, or a list, tuple or dict of such, got {type(net).__name__}"
        )


def _scripted(method: str, module: Any, change: Callable[[Tensor], Tensor | None]) -> None:
    """The same for TorchScript's own object for a module: torch.jit.freeze hides those within it from Python."""
    names = {name for neuron in MultiStep.__subclasses__() for name in neuron._state_names}
    kept = [key for name in names if module.hasattr(f"{name}_seq") for key in (name, f"{name}_seq")]
    if kept and module._has_method(method):
        module._get_method(method)()
        return
    for key in kept:
        state = module.getattr(key)
        if isinstance(state, Tensor):
            module.setattr(key, change(state))
    for _, part in torch._C.ModuleDict(module).items():
        _scripted(method, part, change)
