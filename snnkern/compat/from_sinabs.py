"""Sinabs's layers as snnkern.convert makes them.

They take [batch, time, ...], or both in one dimension, keep their states as buffers and learn their time constants, as before.
The width of the surrogate SingleExponential is relative to the threshold. ALIF goes step by step: Sinabs's gradient leaves out
the threshold of a spike, but not that of its reset.
"""

from __future__ import annotations

from typing import Any

import sinabs.layers
import sinabs.layers.alif
import torch
from sinabs import activation
from sinabs.layers.reshape import SqueezeMixin
from torch import Tensor

from .. import functional
from .. import surrogate as surrogates
from .._states import call_with_states
from .._surrogate import Surrogate
from .convert import NEAREST_SURROGATE, Converted, Given, given_surrogate, number


def spike_surrogate(function: Any, threshold: float) -> Surrogate:
    """Ours for one of sinabs.activation, at a threshold.

    Raises:
        ValueError: for one that snnkern has not.
    """
    cls = type(function)
    if cls is activation.SingleExponential and function.grad_scale == 1:
        return surrogates.SingleExponential(function.grad_width * threshold)
    if cls is activation.Gaussian and function.mu == 0:
        return surrogates.Gaussian(function.sigma, function.grad_scale)
    if cls is activation.MultiGaussian and function.mu == 0:
        return surrogates.MultiGaussian(function.sigma, function.h, function.s, function.grad_scale)
    if cls is activation.PeriodicExponential:
        return surrogates.PeriodicExponential(function.grad_width, threshold, function.grad_scale)
    raise ValueError(f"its surrogate {function!r} is not one of snnkern's")


def most_spikes(function: Any) -> float | None:
    """max_spikes for a spike_fn.

    Raises:
        ValueError: for one of a user's own.
    """
    if function is activation.MultiSpike:
        return None
    if function is activation.SingleSpike:
        return 1
    if isinstance(function, activation.MaxSpike):
        most: int | None = function.max_num_spikes_per_bin
        return most
    raise ValueError(f"its spike_fn {getattr(function, '__name__', function)} is not one of Sinabs's")


class Layer(Converted):
    """The frame of a layer: shapes, states, what it records."""

    def __repr__(self) -> str:
        return f"snnkern.{super().__repr__()}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Layer:
        copied: Layer = super().__deepcopy__(memo)  # type: ignore[misc]  # which makes a new layer
        copied.__dict__["_given"] = self._given
        return copied

    def _reset_states(self) -> None:
        self.reset_states()

    def _detach_states(self) -> None:
        for name, value in self.named_buffers():
            setattr(self, name, value.detach())

    def forward(self, input_data: Tensor) -> Any:
        if isinstance(self, SqueezeMixin):
            return call_with_states(self, self.squeeze_forward, input_data, self._sequence)
        return call_with_states(self, self._sequence, input_data)

    def _sequence(self, x: Tensor) -> Tensor:
        """From and to [batch, time, ...]."""
        shape = (x.shape[0], *x.shape[2:])
        if self.is_state_initialised() and not self.state_has_shape(shape) and self._may_mix(shape):
            self.handle_state_batch_size_mismatch(shape[0])
        elif not self.state_has_shape(shape):
            self.init_state_with_shape(shape)
        output, states = self._run(x.transpose(0, 1))
        names = [name for name, _ in self.named_buffers()]
        # The states after every step, if they are recorded, else the last ones.
        self.recordings = {k: states[k].transpose(0, 1) for k in names if k in states} if self.record_states else {}
        for name, value in states.items():
            setattr(self, name, value[-1] if self.record_states else value)
        self.firing_rate = output.mean()
        return output.transpose(0, 1)

    def _may_mix(self, shape: tuple[int, ...]) -> bool:
        """Whether a state of another batch size is drawn from, which Sinabs's LIF does."""
        return self.has_trailing_dimension(shape[1:])

    def _run(self, x_seq: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError


class LIF(Layer, sinabs.layers.LIF):
    def _run(self, x_seq: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        keep = self._keeps("mem", x_seq)
        arguments = {**self._firing(), "store_v_seq": self.record_states}
        if self.tau_syn_calculated is None:
            spikes, v = self._integrate(x_seq, keep, arguments)
            return spikes, {"v_mem": v}
        keep_current = self._keeps("syn", x_seq)
        share = 1 - keep if self.norm_input else torch.ones_like(keep)  # what the membrane takes of the current
        spikes, v, i = functional.cuba(
            keep_current * share * x_seq, self.v_mem, share * self.i_syn, alpha=keep_current, beta=keep, **arguments
        )
        return spikes, {"v_mem": v, "i_syn": i / share}

    def _keeps(self, name: str, x: Tensor) -> Tensor:
        """What a state keeps in a step, in the type of the states of x: 1 - keep must not round more than they do."""
        kept: Tensor = getattr(self, f"alpha_{name}_calculated")
        return kept.to(x.device, torch.promote_types(kept.dtype, x.dtype))

    def _integrate(self, x_seq: Tensor, keep: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return functional.lif(x_seq, self.v_mem, tau=1 / (1 - keep), decay_input=self.norm_input, **arguments)

    def _firing(self) -> dict[str, Any]:
        hard = isinstance(self.reset_fn, activation.MembraneReset)
        return {
            "v_threshold": number(self.spike_threshold),
            "v_reset": 0.0 if hard else None,
            "detach_reset": hard,
            "max_spikes": most_spikes(self.spike_fn),
            "v_min": number(self.min_v_mem),
            "surrogate": self._spike(),
        }

    def _spike(self) -> Surrogate:
        # The threshold is read again only when it has changed: reading waits for the device.
        function, threshold = self.surrogate_grad_fn, self.spike_threshold
        key = (type(function), *vars(function).items(), threshold._version)
        if getattr(self, "_spike_key", None) != key or self._spike_threshold is not threshold:
            own = given_surrogate(function, self._given)
            self._spike_surrogate = own or spike_surrogate(function, float(threshold.detach().flatten()[0]))
            self._spike_key, self.__dict__["_spike_threshold"] = key, threshold
        return self._spike_surrogate


class IAF(LIF, sinabs.layers.IAF):
    def _integrate(self, x_seq: Tensor, keep: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return functional.if_(x_seq, self.v_mem, **arguments)


class ExpLeak(LIF, sinabs.layers.ExpLeak):
    def _run(self, x_seq: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        tau = 1 / (1 - self._keeps("mem", x_seq))
        v_seq, v = functional.li(x_seq, self.v_mem, tau=tau, decay_input=self.norm_input)
        return v_seq, {"v_mem": v_seq if self.record_states else v}


class ALIF(Layer, sinabs.layers.ALIF):
    def _may_mix(self, shape: tuple[int, ...]) -> bool:
        return False

    def _run(self, x_seq: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        keep, keep_current, keep_b = self.alpha_mem_calculated, self.alpha_syn_calculated, self.alpha_adapt_calculated
        most, relative = most_spikes(self.spike_fn), isinstance(self.surrogate_grad_fn, activation.SingleExponential)
        firing: dict[str, Any] = {
            "v_reset": None,
            "max_spikes": most,
            "surrogate": given_surrogate(self.surrogate_grad_fn, self._given)
            or spike_surrogate(self.surrogate_grad_fn, 1.0),
        }
        state = dict(self.named_buffers())
        spikes, states = [], []
        share = 1 - keep if self.norm_input else 1.0
        for x in x_seq:
            current = share * (x if keep_current is None else keep_current * (state["i_syn"] + x))
            state["i_syn"], v = current, keep * state["v_mem"] + current
            threshold = self.b0 + self.adapt_scale * state["b"]
            fixed = threshold.detach()
            # A width relative to the threshold is one at a threshold of 1.
            u, at = (v / fixed, 1.0) if relative else (v, fixed)
            s = functional.if_(u.unsqueeze(0), v_threshold=at, **firing)[0].squeeze(0)
            state = self.reset_fn(s, {**state, "v_mem": v}, threshold)
            state["b"] = keep_b * state["b"] + (1 - keep_b) * s
            state["spike_threshold"] = self.b0 + self.adapt_scale * state["b"]
            if self.min_v_mem is not None:
                state["v_mem"] = torch.relu(state["v_mem"] - self.min_v_mem) + self.min_v_mem
            spikes.append(s)
            states.append(state)
        kept = ("v_mem", "b", "spike_threshold")  # Sinabs forgets the current
        if self.record_states:
            return torch.stack(spikes), {name: torch.stack([s[name] for s in states]) for name in kept}
        return torch.stack(spikes), {name: state[name] for name in kept}


class LIFSqueeze(LIF, sinabs.layers.LIFSqueeze):
    pass


class IAFSqueeze(IAF, sinabs.layers.IAFSqueeze):
    pass


class ALIFSqueeze(ALIF, sinabs.layers.alif.ALIFSqueeze):
    pass


class ExpLeakSqueeze(ExpLeak, sinabs.layers.ExpLeakSqueeze):
    pass


CONVERTED: dict[type, type[Converted]] = {
    cls.__bases__[1]: cls for cls in (LIF, LIFSqueeze, IAF, IAFSqueeze, ALIF, ALIFSqueeze, ExpLeak, ExpLeakSqueeze)
}

NEAREST = {
    "LIFRecurrent": "nearest: its connection around sinabs.layers.LIF, step by step",
    "IAFRecurrent": "nearest: its connection around sinabs.layers.IAF, step by step",
    "ALIFRecurrent": "nearest: its connection around sinabs.layers.ALIF, step by step",
}


def is_neuron(kind: type) -> bool:
    return issubclass(kind, sinabs.layers.StatefulLayer)


def refusal(module: Any, given: Given) -> str | None:
    if isinstance(module, sinabs.layers.ExpLeak):
        return None if module.min_v_mem is None else "min_v_mem without a spike; nearest: min_v_mem=None"
    try:
        most_spikes(module.spike_fn)
    except ValueError as error:
        return f"{error}; nearest: SingleSpike, MaxSpike or MultiSpike"
    if given_surrogate(module.surrogate_grad_fn, given) is None:
        try:
            spike_surrogate(module.surrogate_grad_fn, 1.0)
        except ValueError as error:
            return f"{error}; {NEAREST_SURROGATE}"
    relative = isinstance(module.surrogate_grad_fn, (activation.SingleExponential, activation.PeriodicExponential))
    if isinstance(module, sinabs.layers.ALIF):
        if isinstance(module.surrogate_grad_fn, activation.PeriodicExponential):
            return "PeriodicExponential is relative to a threshold that changes; nearest: SingleExponential"
        return None
    fn, threshold = module.reset_fn, module.spike_threshold
    if isinstance(fn, activation.MembraneReset):
        if fn.reset_value != 0:
            return "MembraneReset adds its reset_value at every step; nearest: reset_value=0"
    elif isinstance(fn, activation.MembraneSubtract):
        if fn.subtract_value is not None and bool((threshold != fn.subtract_value).any()):
            return "MembraneSubtract of another value than the threshold; nearest: subtract_value=None"
    else:
        return f"its reset_fn {fn!r} is not one of Sinabs's"
    if relative and bool((threshold != threshold.max()).any()):
        return "its surrogate is relative to thresholds that differ; nearest: Gaussian, or one threshold"
    return None
