"""SpikingJelly's neurons as snnkern.convert makes them; which is which stands in spikingjelly/_fused.py.

They stay SpikingJelly's memory modules: functional.reset_net, set_step_mode and detach_net work, and `.v`, `.v_seq` and all
their arguments are where they were. Its layers and containers are left as they are, but for LinearRecurrentContainer around one
of these neurons: a sequence runs through one operator of a recurrent layer.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor

from .._states import call_with_states
from .._surrogate import Surrogate
from .convert import NEAREST_SURROGATE, Converted, Given, given_surrogate
from .spikingjelly._fused import NODES, Fused, spike_surrogate


class Node(Converted, Fused):
    """Base of the converted neurons of SpikingJelly."""

    def _ours(self, function: Any) -> Surrogate:
        return given_surrogate(function, self._given) or spike_surrogate(function)


class LinearRecurrentContainer(Converted, layer.LinearRecurrentContainer):
    """Its linear layer takes the input and the spikes of the step before side by side."""

    y: Tensor | None

    def _reset_states(self) -> None:
        self.reset()

    def _detach_states(self) -> None:
        if isinstance(self.y, Tensor):
            self.y = self.y.detach()

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = self.y
        fits = y is None or y.shape == x_seq.shape[1:]  # else SpikingJelly says what is wrong
        if args or kwargs or not fits or not self._is_fused() or x_seq.dim() < 3:
            return super().multi_step_forward(x_seq, *args, **kwargs)
        return call_with_states(self, self._sequence, x_seq)

    def _is_fused(self) -> bool:
        """Whether a neuron of this module is all that it contains, with nothing that wants to see a single step."""
        inside, around = self.sub_module, (self.sub_module, self.rc)
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return (
            type(inside) in CONVERTED.values()
            and isinstance(inside, Node)
            and type(self.rc) is torch.nn.Linear
            and self.rc.in_features == 2 * self.rc.out_features
            and not any(vars(module)[name] for module in around for name in hooks)
        )

    def _sequence(self, x_seq: Tensor) -> Tensor:
        size = self.rc.out_features
        function = functools.partial(
            self.sub_module.fused.recurrent, weight_hh=self.rc.weight[:, size:], spike_init=self.y
        )
        current = torch.nn.functional.linear(x_seq, self.rc.weight[:, :size], self.rc.bias)
        spikes, _ = call_with_states(self.sub_module, self.sub_module._call, function, current, several=False)
        self.y = spikes[-1].clone()  # no view, which functional.detach_net could not detach
        return spikes


def _converted(name: str) -> type[Converted]:
    bases = (Node, getattr(neuron, name))
    return type(name, bases, {"__module__": __name__, "fused": NODES[name]})


CONVERTED: dict[type, type[Converted]] = {
    getattr(neuron, name): _converted(name) for name in NODES if hasattr(neuron, name)
}
CONVERTED[layer.LinearRecurrentContainer] = LinearRecurrentContainer
globals().update({cls.__name__: cls for cls in CONVERTED.values()})  # where pickle looks for them

NEAREST = {
    "NonSpikingIFNode": "nearest: snnkern.nn.LI with a long tau",
    "NonSpikingLIFNode": "nearest: snnkern.nn.LI",
    "TernaryIFNode": "nearest: TernaryLIFNode with a long tau and decay_input=False",
    "GatedLIFNode": "nearest: snnkern.nn.ParametricLIF with learn_v_threshold=True",
    "LIAFNode": "nearest: snnkern.nn.LIF",
    "OTTTLIFNode": "nearest: snnkern.nn.LIF, which learns through time",
    "SLTTLIFNode": "nearest: snnkern.nn.LIF, which learns through time",
}


def is_neuron(kind: type) -> bool:
    # Those of a user's own are derived from one of these.
    return any(base.__module__.startswith("spikingjelly.activation_based.neuron") for base in kind.__mro__)


def refusal(module: Any, given: Given) -> str | None:
    if isinstance(module, layer.LinearRecurrentContainer):
        return None
    function = module.surrogate_function
    if type(module).__name__ == "TernaryLIFNode" and module.v_reset is not None and not module.detach_reset:
        return "the gradient of its hard reset is another; nearest: detach_reset=True, or v_reset=None"
    if not NODES[type(module).__name__].has_surrogate:
        if (function.grad_min, function.grad_max) != (0, function.max_spike_count):
            return "its gradient has a window of its own (grad_window); nearest: a window from 0 to max_spike_count"
    elif given_surrogate(function, given) is None:
        try:
            spike_surrogate(function)
        except (TypeError, ValueError) as error:
            return f"{error}; {NEAREST_SURROGATE}"
        if type(function).__name__ == "S2NN" and not function.spiking:
            return "with spiking=False, the derivative of S2NN differs from its gradient; nearest: spiking=True"
    return None
