"""snnkern.convert: networks of other libraries on snnkern's kernels.

What a neuron of a library is here stands in that library's table: from_spikingjelly.py, from_snntorch.py, from_norse.py and
from_sinabs.py. A table has, for each class of the library that can be converted, a subclass of it whose steps run on
snnkern's operators. To convert a neuron is to make it an object of that subclass: all that the neuron is and keeps (weights,
state, hooks, training mode, device, its place in the network) stays, and so does all that the library does with it.
"""

from __future__ import annotations

import copy
import importlib
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .._networks import Foreign
from .._nn import MultiStep
from .._surrogate import Surrogate

# A table is imported only for a library that is there already.
TABLES = {
    library: f"{__package__}.from_{library.partition('.')[0]}"
    for library in ("spikingjelly.activation_based.neuron", "snntorch", "norse.torch", "sinabs.layers")
}


Given = Mapping[Any, Surrogate]  # what a user's own surrogate functions are here: by the function, or by its class


NEAREST_SURROGATE = "nearest: one of snnkern.surrogate, by convert(net, surrogates={...})"


def given_surrogate(function: Any, given: Given) -> Surrogate | None:
    """What a user has given for a surrogate function."""
    return next((ours for own, ours in given.items() if own in (function, type(function))), None)


class Converted(Foreign):
    """Base of the converted neurons."""

    _given: Given = {}  # noqa: RUF012  what the neuron was converted with

    def _get_name(self) -> str:
        return f"snnkern.{type(self).__name__}"

    def _adopted(self) -> None:
        """What the library wants to know of a new neuron."""

    if TYPE_CHECKING:  # the rest is in the class of the library

        def __getattr__(self, name: str) -> Any: ...


def number(value: Any) -> Any:
    """A scalar on the CPU that is not learned as a number, which costs an operator less; torch.compile would not read it."""
    free = (
        isinstance(value, torch.Tensor) and value.dim() == 0 and value.device.type == "cpu" and not value.requires_grad
    )
    return value.item() if free and not torch.compiler.is_compiling() else value


class Table(Protocol):
    """What the module of a library has."""

    CONVERTED: dict[type, type[Converted]]
    NEAREST: dict[str, str]  # for a class that cannot be converted: what comes close

    @staticmethod
    def is_neuron(kind: type) -> bool:
        """Whether the objects of a class, of the library or derived from one of it, are neurons."""

    @staticmethod
    def refusal(module: Any, given: Given) -> str | None:
        """Why a neuron of a class in CONVERTED cannot be converted, and what comes close; None if it can."""


def convert(
    net: torch.nn.Module, *, inplace: bool = False, strict: bool = True, surrogates: Given | None = None
) -> torch.nn.Module:
    """The network with every neuron of SpikingJelly, snnTorch, Norse and Sinabs running on snnkern's operators.

    Weights, state, hooks, training mode, device, dtype and the keys of the state_dict stay, a neuron that is used twice stays
    one, and the network is called as before: in single steps where the library works in single steps, with the library's own
    functions to reset it. Outputs and gradients are the same up to rounding.

    Args:
        net: a network, or a neuron; libraries may be mixed
        inplace: change this network itself; else a copy is converted
        strict: a neuron that cannot be converted is an error, which lists all of them; else a warning, and it is left as it is
        surrogates: for surrogate functions of your own, one of snnkern.surrogate or of snnkern.define_surrogate: by the class
            of the function or, of snnTorch, by the function that a neuron has as its spike_grad

    Raises:
        ValueError: neurons that cannot be converted: which, why, and what comes close. The network is as it was.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron  # doctest: +SKIP
        >>> net = torch.nn.Sequential(layer.Linear(8, 4), neuron.IFNode(v_reset=None))  # doctest: +SKIP
        >>> snnkern.convert(net)  # doctest: +SKIP
        Sequential(
          (0): Linear(in_features=8, out_features=4, bias=True)
          (1): snnkern.IFNode(
            v_threshold=1.0, v_reset=None, detach_reset=False, step_mode=s
            (surrogate_function): Sigmoid(alpha=4.0, spiking=True)
          )
        )
    """
    if not isinstance(net, torch.nn.Module):
        raise TypeError(f"snnkern.convert: net must be a torch.nn.Module, got {type(net).__name__}")
    given = dict(surrogates or {})
    for own, ours in given.items():
        if not isinstance(ours, Surrogate):
            raise TypeError(
                f"snnkern.convert: surrogates[{_called(own)}] must be one of snnkern.surrogate, got {ours!r}"
            )
    tables = _tables()
    refused = {
        name: why for name, module in net.named_modules() if (why := _refusal(module, tables, given)) is not None
    }
    if refused:
        listed = "".join(f"\n  {name or 'net'}: {why}" for name, why in refused.items())
        message = f"snnkern.convert: {len(refused)} of the network's neurons cannot be converted:{listed}"
        if strict:
            raise ValueError(f"{message}\nconvert(net, strict=False) leaves them as they are.")
        warnings.warn(message, stacklevel=2)
    if not inplace:
        net = _copy(net)
    neurons = 0
    for module in net.modules():
        neurons += isinstance(module, (Foreign, MultiStep))
        for table in tables:
            converted = table.CONVERTED.get(type(module))
            if converted is not None and table.refusal(module, given) is None:
                module.__class__ = converted  # type: ignore[assignment]
                module.__dict__["_given"] = given
                module._adopted()  # type: ignore[operator]
                neurons += 1
    if neurons == 0 and not refused:
        warnings.warn(
            "snnkern.convert: no neuron of SpikingJelly, snnTorch, Norse or Sinabs in this network", stacklevel=2
        )
    return net


def _called(function: Any) -> str:
    return str(getattr(function, "__name__", function))


def _tables() -> list[Table]:
    # An installed snnkern.compat.spikingjelly has snnkern's neurons already.
    found = (table for library, table in TABLES.items() if getattr(sys.modules.get(library), "__name__", "") == library)
    return [importlib.import_module(table) for table in found]  # type: ignore[misc]


def _refusal(module: torch.nn.Module, tables: list[Table], given: Given) -> str | None:
    """Why a module must be left as it is, if it is another library's neuron and cannot be converted."""
    if isinstance(module, Converted):
        return None
    cls = type(module)
    for table in tables:
        if cls in table.CONVERTED:
            why = table.refusal(module, given)
            return f"{cls.__name__}: {why}" if why else None
        if table.is_neuron(cls):
            if cls.__module__.partition(".")[0] not in {library.partition(".")[0] for library in TABLES}:
                base = next(c for c in cls.__mro__ if table.is_neuron(c) and c is not cls)
                return f"{cls.__name__}: a class of your own, derived from {base.__name__}; nearest: that, or one of snnkern.nn"
            nearest = table.NEAREST.get(cls.__name__, "snnkern.nn has those that there are")
            return f"{cls.__name__}: snnkern has no such neuron; {nearest}"
    return None


def _copy(net: torch.nn.Module) -> torch.nn.Module:
    """A deep copy that keeps what copy.deepcopy loses: the values of a state in a graph, hooks on parameters, shared modules."""
    memo: dict[int, Any] = {}
    modules = list(net.modules())
    for module in modules:
        for value in [*vars(module).values(), *module._buffers.values(), *vars(module).get("_memories", {}).values()]:
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    # By their attributes, and not by a __deepcopy__ of their own, which makes a module anew and forgets its hooks and mode.
    own = [module for module in modules if hasattr(type(module), "__deepcopy__")]
    for module in own:
        memo[id(module)] = type(module).__new__(type(module))
    for module in own:
        memo[id(module)].__dict__.update(copy.deepcopy(vars(module), memo))
    copied: torch.nn.Module = memo[id(net)] if id(net) in memo else copy.deepcopy(net, memo)
    for old, new in zip(net.parameters(), copied.parameters(), strict=True):
        for hook in (old._backward_hooks or {}).values():
            new.register_hook(hook)  # type: ignore[no-untyped-call]
    return copied
