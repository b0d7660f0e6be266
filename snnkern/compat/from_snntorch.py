"""snnTorch's neurons as snnkern.convert makes them.

They stay single steps of a time loop that the user writes, with snnTorch's arguments, results and states; snntorch.utils.reset
and the like work. A delayed subtraction, and Leaky's delayed reset to zero, are conventions that the operators have. With other
resets, snnTorch's own function charges the membrane, and an operator makes the spike.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import snntorch
import torch
from torch import Tensor

from .. import functional
from .. import surrogate as surrogates
from .._states import call_with_states
from .._surrogate import Surrogate
from .convert import NEAREST_SURROGATE, Converted, Given, given_surrogate, number

# The maker of a surrogate -> ours, from its arguments.
SURROGATES: dict[str, Callable[..., Surrogate]] = {
    "atan": surrogates.ATan,
    "fast_sigmoid": surrogates.FastSigmoid,
    "sigmoid": surrogates.Sigmoid,
    "straight_through_estimator": surrogates.StraightThrough,
}
# What decides in snnTorch: the method that __init__ has chosen.
MECHANISMS = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}


def spike_surrogate(function: Any) -> Surrogate:
    """Ours for what snntorch.surrogate has made.

    Raises:
        ValueError: for any other function.
    """
    maker = getattr(function, "__qualname__", type(function).__name__).partition(".")[0]
    if getattr(function, "__module__", "") != "snntorch.surrogate" or maker not in SURROGATES:
        raise ValueError(f"its surrogate function {maker} is not one of snnkern's")
    return SURROGATES[maker](*inspect.getclosurevars(function).nonlocals.values())


def _kept(value: Tensor) -> Any:
    """What stays of a state in a step, as snnTorch bounds it."""
    kept = number(value)
    return kept.clamp(0, 1) if isinstance(kept, Tensor) else min(max(kept, 0.0), 1.0)


class Neuron(Converted):
    """A step in snnTorch's way: states come as arguments, or are kept from the last call."""

    mem: Tensor
    syn: Tensor
    names: ClassVar[tuple[str, ...]] = ("mem",)  # the states, in the order of the arguments
    fused: ClassVar[tuple[str, ...]] = ("subtract",)  # the delayed resets that the operator of its step has

    def _adopted(self) -> None:
        # snntorch.utils.reset goes through this list, where a copy is not.
        if all(neuron is not self for neuron in snntorch.SpikingNeuron.instances):
            snntorch.SpikingNeuron.instances.append(self)

    def _reset_states(self) -> None:
        self.reset_mem()

    def _detach_states(self) -> None:
        for name in self.names:
            setattr(self, name, getattr(self, name).detach())

    def forward(self, input_: Tensor, *states: Tensor | None, **named: Tensor | None) -> Any:
        return call_with_states(self, self._forward, input_, *states, **named)

    def _forward(self, input_: Tensor, *states: Tensor | None, **named: Tensor | None) -> Any:
        if input_.dim() == 0:  # the operators take neurons by the row
            return super().forward(input_, *states, **named)  # type: ignore[misc]
        if len(states) > len(self.names) or not named.keys() <= set(self.names[len(states) :]):
            raise TypeError(f"{type(self).__name__} takes input_ and the states {', '.join(self.names)}")
        given = {k: v for k, v in {**dict(zip(self.names, states, strict=False)), **named}.items() if v is not None}
        if given and self.init_hidden:
            raise TypeError(f"`{'`, `'.join(given)}` should not be passed as an argument while `init_hidden=True`")
        for name in self.names:
            value = given.get(name, getattr(self, name))
            setattr(self, name, value if value.shape == input_.shape else torch.zeros_like(input_))
        spk = self._step(input_)
        if self.init_hidden and not self.output:
            return spk
        return spk, *(getattr(self, name) for name in self.names if name != "spk")

    def _step(self, x: Tensor) -> Tensor:
        firing = {"v_threshold": number(self.threshold), "strict": True, "surrogate": self._spike()}
        mechanism, delayed = MECHANISMS[self.state_function.__name__], getattr(self, "reset_delay", True)
        if delayed and mechanism in self.fused:
            v_reset = None if mechanism == "subtract" else 0.0
            spk = self._fused(self._input(x).unsqueeze(0), v_reset=v_reset, delay_reset=True, **firing).squeeze(0)
        else:
            self.reset = self.mem_reset(self.mem)
            states = self.state_function(x)  # with the reset that is due
            names = [name for name in self.names if name != "spk"]
            for name, state in zip(names, states if len(names) > 1 else [states], strict=True):
                setattr(self, name, state)
            spk = functional.if_(self.mem.unsqueeze(0), v_reset=None, **firing)[0].squeeze(0)
            if not delayed:  # the spike resets, and what the last one has reset comes back
                owed = {"subtract": self.threshold, "zero": self.mem, "none": 0.0}[mechanism]
                self.mem = self.mem - (spk - self.reset) * owed
        return spk * self.graded_spikes_factor

    def _input(self, x: Tensor) -> Tensor:
        return x

    def _fused(self, x_seq: Tensor, **firing: Any) -> Tensor:
        """The spikes, by the neuron's operator; sets the states."""
        raise NotImplementedError

    def _spike(self) -> Surrogate:
        if getattr(self, "_spike_key", None) is not self.spike_grad:
            self._spike_surrogate = given_surrogate(self.spike_grad, self._given) or spike_surrogate(self.spike_grad)
            self._spike_key = self.spike_grad
        return self._spike_surrogate


class Leaky(Neuron, snntorch.Leaky):
    fused = ("subtract", "zero")

    def _fused(self, x_seq: Tensor, **firing: Any) -> Tensor:
        # As a current that is gone after a step: beta * mem + x, to the bit.
        spk, self.mem, _ = functional.cuba(x_seq, self.mem, alpha=0.0, beta=_kept(self.beta), **firing)
        return spk


class Lapicque(Neuron, snntorch.Lapicque):
    def _fused(self, x_seq: Tensor, **firing: Any) -> Tensor:
        circuit = {"resistance": self.R, "capacitance": self.C, "dt": self.time_step}
        circuit = {
            name: number(value.to(torch.float64)) for name, value in circuit.items()
        }  # they may be whole numbers
        spk, self.mem = functional.lapicque(x_seq, self.mem, **circuit, **firing)
        return spk


class Synaptic(Neuron, snntorch.Synaptic):
    names = ("syn", "mem")

    def _fused(self, x_seq: Tensor, **firing: Any) -> Tensor:
        kept = {"alpha": _kept(self.alpha), "beta": _kept(self.beta)}
        spk, self.mem, self.syn = functional.cuba(x_seq, self.mem, self.syn, **kept, **firing)
        return spk


class Alpha(Neuron, snntorch.Alpha):
    """Its potential is the scaled sum of two currents, and remembers nothing itself."""

    names = ("syn_exc", "syn_inh", "mem")
    fused = ()


class Recurrent(Neuron):
    """Its own spikes come back through a layer."""

    def _step(self, x: Tensor) -> Tensor:
        self.spk: Tensor = super()._step(x)
        return self.spk

    def _input(self, x: Tensor) -> Tensor:
        return x + self.recurrent(self.spk)


class RLeaky(Recurrent, snntorch.RLeaky):
    names = ("spk", "mem")
    _fused = Leaky._fused


class RSynaptic(Recurrent, snntorch.RSynaptic):
    names = ("spk", "syn", "mem")
    _fused = Synaptic._fused


CONVERTED: dict[type, type[Converted]] = {
    getattr(snntorch, cls.__name__): cls for cls in (Leaky, Lapicque, Synaptic, Alpha, RLeaky, RSynaptic)
}

NEAREST = {
    "LinearLeaky": "nearest: torch.nn.Linear and snntorch.Leaky, which can be converted",
    "LeakyParallel": "nearest: snnkern.nn.LIF, which takes whole sequences",
    "DeltaLeaky": "nearest: snntorch.Leaky",
    "StateLeaky": "nearest: snnkern.nn.LI",
}


def is_neuron(kind: type) -> bool:
    if kind.__name__ == "RecurrentOneToOne":  # a layer
        return False
    return any(base.__module__.startswith("snntorch._neurons") for base in kind.__mro__)


def refusal(module: Any, given: Given) -> str | None:
    if module.inhibition:
        return "inhibition=True lets one neuron of a layer spike; nearest: inhibition=False"
    if module.state_quant:
        return "state_quant rounds its states; nearest: state_quant=False"
    if isinstance(module, snntorch.RSynaptic) and not module.reset_delay:
        return "reset_delay=False does not run in snnTorch either; nearest: reset_delay=True"
    if given_surrogate(module.spike_grad, given) is None:
        try:
            spike_surrogate(module.spike_grad)
        except ValueError as error:
            return f"{error}; {NEAREST_SURROGATE}"
    return None
