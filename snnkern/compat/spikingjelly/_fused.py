"""SpikingJelly's neurons on snnkern's operators: which is which, and the steps that they share.

Fused serves the classes of snnkern.compat.spikingjelly and those that snnkern.convert makes of SpikingJelly's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from ... import functional
from ... import surrogate as surrogates
from ..._networks import Foreign
from ..._norm import Norm
from ..._states import call_with_states
from ..._surrogate import Surrogate

# The modules whose surrogates are meant by their names.
SURROGATE_MODULES = (
    "spikingjelly.activation_based.surrogate",
    "spikingjelly.clock_driven.surrogate",
    f"{__package__}.surrogate",
)
# Names and parameters are the same, but for this.
SURROGATES = {"DeterministicPass": "StraightThrough"}


@dataclass(frozen=True)
class Node:
    """A neuron: our function, its arguments and states, each by the name that it has as an attribute of the node."""

    function: Callable[..., Any]
    arguments: Mapping[str, str | Callable[[Any], Any]]
    states: Mapping[str, str] = field(default_factory=lambda: {"v": "v"})
    has_surrogate: bool = True

    @property
    def batch_norm(self) -> Callable[..., Any]:
        """Our function behind a BatchNorm."""
        normed: Callable[..., Any] = getattr(functional, f"batch_norm_{self.function.__name__.rstrip('_')}")
        return normed

    @property
    def recurrent(self) -> Callable[..., Any]:
        """Our function with its spikes fed back."""
        fed_back: Callable[..., Any] = getattr(functional, f"recurrent_{self.function.__name__.rstrip('_')}")
        return fed_back


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


FIRING = _same("v_threshold", "v_reset", "detach_reset")
LEAK = _same("tau", "decay_input")
RECOVERY = _same("w_rest", "tau_w", "a", "b")

NODES: dict[str, Node] = {
    "IFNode": Node(functional.if_, FIRING),
    "LIFNode": Node(functional.lif, {**LEAK, **FIRING}),
    "ParametricLIFNode": Node(
        functional.plif, {"decay": lambda node: node.w.sigmoid(), **_same("decay_input"), **FIRING}
    ),
    "QIFNode": Node(functional.qif, {**_same("tau", "v_c", "a0", "v_rest"), **FIRING}),
    "EIFNode": Node(functional.eif, {**_same("tau", "delta_T", "theta_rh", "v_rest"), **FIRING}),
    "IzhikevichNode": Node(
        functional.izhikevich, {**_same("tau", "v_c", "a0", "v_rest"), **RECOVERY, **FIRING}, _same("v", "w")
    ),
    "KLIFNode": Node(functional.klif, {**LEAK, **_same("k", "scale_reset"), **FIRING}),
    "ILIFNode": Node(
        functional.ilif,
        {
            **_same("tau", "v_threshold", "detach_reset"),
            "max_spike_count": lambda node: node.surrogate_function.max_spike_count,
        },
        has_surrogate=False,
    ),
    "ComplementaryLIFNode": Node(functional.clif, _same("tau", "v_threshold"), _same("v", "m")),
    "CUBALIFNode": Node(functional.cuba, {"alpha": "c_decay", "beta": "v_decay", **FIRING}, {"v": "v", "i": "c"}),
    "TernaryLIFNode": Node(functional.ternary_lif, {**LEAK, "v_threshold_neg": "v_threshold", **FIRING}),
    "SimpleIFNode": Node(functional.if_, FIRING),
    "SimpleLIFNode": Node(functional.lif, {**LEAK, **FIRING}),
    "HalfThresholdIFNode": Node(functional.if_, FIRING),
}


def spike_surrogate(function: Any) -> Surrogate:
    """Ours for one of SpikingJelly's surrogate functions.

    Raises:
        ValueError: for one that snnkern has not.
    """
    cls = type(function)
    name = SURROGATES.get(cls.__name__, cls.__name__)
    ours = getattr(surrogates, name, None) if cls.__module__ in SURROGATE_MODULES else None
    if ours is None:
        raise ValueError(
            f"its surrogate function {getattr(function, '__name__', cls.__name__)} is not one of snnkern's"
        )
    values = {f.name: getattr(function, f.name) for f in fields(ours)}
    return ours(**values)


def _key(function: Any) -> tuple[Any, ...]:
    """What a surrogate is made from; a module's values may change."""
    values = {k: v for k, v in vars(function).items() if not k.startswith("_")} if hasattr(function, "__dict__") else {}
    return type(function), *values.items()


class Fused(Foreign):
    """The steps of a neuron: its attributes are read at every call, since SpikingJelly's users change them."""

    fused: ClassVar[Node]
    surrogate_function: Any
    _memories_rv: dict[str, Any]
    v_seq: Any
    reset: Callable[[], None]

    def single_step_forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = call_with_states(self, self._run, x.unsqueeze(0), several=False)
        return spikes.squeeze(0)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        spikes: Tensor = call_with_states(self, self._run, x_seq, several=True)
        return spikes

    def _run(self, x_seq: Tensor, several: bool) -> Tensor:
        if x_seq.dim() == 1:  # a single neuron: the operators take neurons by the row
            spikes = self._run(x_seq.unsqueeze(-1), several)
            for name in self.fused.states.values():
                setattr(self, name, getattr(self, name).squeeze(-1))
            return spikes.squeeze(-1)
        return self._call(self.fused.function, x_seq, several)[0]

    def _refuses_norm(self) -> str:
        """Why it cannot run behind a BatchNorm as one operator, or nothing."""
        forward = next(c for c in type(self).__mro__ if "forward" in vars(c))
        if type(self).multi_step_forward is not Fused.multi_step_forward or not forward.__module__.endswith(".base"):
            return f"{type(self).__name__} has a forward of its own"
        return "" if getattr(self, "step_mode", "s") == "m" else "its step_mode is 's': it sees one step at a time"

    def _normed(self, x_seq: Tensor, norm: Norm) -> tuple[Tensor, Tensor | None]:
        function = functools.partial(self.fused.batch_norm, **norm._asdict())
        spikes, (sum_seq,) = call_with_states(self, self._call, function, x_seq, several=True)
        return spikes, sum_seq

    def _call(self, function: Callable[..., Any], x_seq: Tensor, several: bool) -> tuple[Tensor, list[Any]]:
        """The spikes, and what the function returns behind the states, which are kept."""
        states = self.fused.states
        arguments: dict[str, Any] = {f"{ours}_init": self._start(name, x_seq[0]) for ours, name in states.items()}
        for ours, value in self.fused.arguments.items():
            arguments[ours] = getattr(self, value) if isinstance(value, str) else value(self)
        if self.fused.has_surrogate:
            arguments["surrogate"] = self._spike()
        stores, stores_all = getattr(self, "store_v_seq", False), getattr(self, "store_state_seqs", False)
        spikes, *values = function(x_seq, store_v_seq=stores or stores_all, **arguments)
        values, rest = values[: len(states)], values[len(states) :]
        sequences = values
        if stores or stores_all:
            values = [value[-1].clone() for value in values]  # no view, which functional.detach_net could not detach
        for name, value in zip(states.values(), values, strict=True):
            setattr(self, name, value)
        if stores:
            before: Any = None if several else self.v_seq
            kept = before is not None and before.shape[1:] == sequences[0].shape[1:]
            self.v_seq = torch.cat((before, sequences[0])) if kept else sequences[0]
        if several and stores_all:
            self.state_seqs = sequences
        return spikes, rest

    def _reset_states(self) -> None:
        self.reset()

    def _detach_states(self) -> None:
        for name in [*self.fused.states.values(), "v_seq"]:
            value = getattr(self, name, None)
            if isinstance(value, Tensor):
                setattr(self, name, value.detach())

    def _start(self, name: str, x: Tensor) -> Tensor | None:
        """A state as the operator takes it: SpikingJelly has a number before the first step, and after another batch size."""
        value = getattr(self, name)
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape != x.shape:
            value = self._memories_rv[name]
        if isinstance(value, Tensor):
            return value.to(x.device).expand(x.shape)
        usual = {"v": getattr(self, "v_reset", None) or 0.0, "w": getattr(self, "w_rest", 0.0)}
        if isinstance(usual.get(name, 0.0), float) and value == usual.get(name, 0.0):
            return None
        return torch.full(x.shape, value, device=x.device, dtype=x.dtype if x.dtype == torch.float64 else torch.float32)

    def _spike(self) -> Surrogate:
        function = self.surrogate_function
        key = _key(function)
        if getattr(self, "_spike_key", None) != key:
            self._spike_surrogate = self._ours(function)
            self._spike_key = key
        return self._spike_surrogate

    def _ours(self, function: Any) -> Surrogate:
        return spike_surrogate(function)
