"""SpikingJelly's neurons as snnkern.convert makes them; which is which stands in spikingjelly/_fused.py.

They stay SpikingJelly's memory modules: functional.reset_net, set_step_mode and detach_net work, and `.v`, `.v_seq` and all
their arguments are where they were. Its layers and containers are left as they are.
"""

from __future__ import annotations

from typing import Any

from spikingjelly.activation_based import neuron

from .._surrogate import Surrogate
from .convert import NEAREST_SURROGATE, Converted, Given, given_surrogate
from .spikingjelly._fused import NODES, Fused, spike_surrogate


class Node(Converted, Fused):
    """Base of the converted neurons of SpikingJelly."""

    def _ours(self, function: Any) -> Surrogate:
        return given_surrogate(function, self._given) or spike_surrogate(function)


def _converted(name: str) -> type[Converted]:
    bases = (Node, getattr(neuron, name))
    return type(name, bases, {"__module__": __name__, "fused": NODES[name]})


CONVERTED: dict[type, type[Converted]] = {
    getattr(neuron, name): _converted(name) for name in NODES if hasattr(neuron, name)
}
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
