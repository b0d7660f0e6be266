"""What PyTorch cannot know of the operators by their schemas: which dimensions of their tensors are those of the neurons.

A neuron's results depend on no other neuron, so a dimension of neurons may be batched (vmap) or spread over devices
(DTensor). Time, the first dimension of a sequence, may not; nor may the last of a recurrent layer, whose neurons feed each
other.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ._specification import NEURONS
from .codegen.specification.base import SURROGATE_TENSORS, Neuron


@dataclass(frozen=True)
class Operator:
    """One operator of one neuron."""

    neuron: type[Neuron]
    overload: Any  # torch._ops.OpOverload

    @property
    def name(self) -> str:
        """As users call it, also where the neuron was defined at run time."""
        name: str = self.overload._schema.name.removeprefix("snnkern::")
        return name.replace(self.neuron.key(), self.neuron.name)

    @functools.cached_property
    def arguments(self) -> list[str]:
        return [a.name for a in self.overload._schema.arguments]

    @functools.cached_property
    def results(self) -> list[str]:
        return [r.name for r in self.overload._schema.returns]

    @functools.cached_property
    def parameters(self) -> list[str]:
        """Parameters that may be tensors: they broadcast against x_seq[0], or with time against x_seq."""
        return [t.name for t in self.neuron.required()] + [f"{p.symbol}_tensor" for p in self.neuron.numbers()]

    @functools.cached_property
    def weights(self) -> list[str]:
        """Tensors of a recurrent layer that all of the batch shares."""
        return [name for name in ("weight_hh", "bias_hh") if name in self.arguments]

    @property
    def least_rank(self) -> int:
        """The dimensions that x_seq must have."""
        return 3 if self.weights else 2

    @property
    def shared(self) -> list[str]:
        """Tensors that have no dimension of neurons."""
        return list(SURROGATE_TENSORS) if self.neuron.has_surrogate else []

    def empty_results(self, values: Mapping[str, Any]) -> set[str]:
        """The gradients of what was not given, or that are not wanted: they have no element."""
        inits = [*(f"{s.name}_init" for s in self.neuron.states), *(["spike_init"] if self.weights else [])]
        left_out = {name for name in (*inits, *self.parameters, *self.weights) if values[name] is None}
        left_out |= set() if values.get("weight_gradients", True) else set(self.weights)
        return {f"grad_{name}" for name in left_out}.intersection(self.results)

    def complete(self, args: Sequence[Any]) -> list[Any]:
        """All arguments: the dispatcher leaves out those at the end that have their default value."""
        return [*args, *(a.default_value for a in self.overload._schema.arguments[len(args) :])]

    def first_of_neurons(self, name: str, store_v_seq: bool) -> int:
        """The first dimension of neurons of an argument or result: 1 behind T, 0 without T."""
        states = [s.name for s in self.neuron.states]
        if name in states or name in [f"grad_{s}" for s in states]:
            return int(store_v_seq)
        return 1 if name.endswith("_seq") or name == "checkpoints" else 0


_ROLES = ("{}_forward", "_{}_train", "{}_backward")
_RECURRENT_ROLES = ("{}_recurrent_forward", "_{}_recurrent_train", "{}_recurrent_backward")
NORM_ROLES = ("{}_norm_forward", "_{}_norm_train", "{}_norm_backward")
"""Of the operators with a BatchNorm in front, which a neuron with more inputs than x has not."""


def roles_of(neuron: type[Neuron]) -> tuple[str, ...]:
    """The names of a neuron's operators, with {} for its key."""
    return (*_ROLES, *(_RECURRENT_ROLES if neuron.spikes() else ()))


def operators_of(neuron: type[Neuron]) -> list[Operator]:
    names = [role.format(neuron.key()) for role in roles_of(neuron)]
    return [Operator(neuron, getattr(torch.ops.snnkern, name).default) for name in names]


OPERATORS = [operator for neuron in NEURONS.values() for operator in operators_of(neuron)]
"""All of them; a neuron that is defined at run time adds its own."""
