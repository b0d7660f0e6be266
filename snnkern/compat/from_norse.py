"""Norse's neurons as snnkern.convert makes them.

They stay functions of an input and a state, (x, state) -> (output, state), as norse.torch.SequentialState calls them. With
d = dt * tau_mem_inv and e = dt * tau_syn_inv, a membrane with a current is snnkern's `cuba` for the input d * x: potentials
are measured from v_leak, and the current is that of the operator, times (1 - e) / d, since theirs decays after the membrane
has seen it. Sparse inputs go the way of Norse.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import norse.torch
import torch
from norse.torch.functional import reset
from torch import Tensor

from .. import functional
from .. import surrogate as surrogates
from .._surrogate import Surrogate
from .convert import Converted


def spike_surrogate(p: Any) -> Surrogate:
    """Ours for the method and alpha of a neuron's parameters.

    Raises:
        ValueError: for a method that has none.
    """
    if p.method == "super":
        return surrogates.SuperSpike()  # their alpha has no effect
    if p.method == "triangle":
        return surrogates.Triangle(float(p.alpha))
    raise ValueError(f"its method {p.method!r} has a gradient that is not one of snnkern's")


class Membrane(NamedTuple):
    """The parameters of a membrane as the operators take them. None: a neuron has not this one, or is reset softly."""

    d: Tensor
    e: Tensor
    v_leak: Any
    v_threshold: Any
    v_reset: Any


class Neuron(Converted):
    """(x, state) -> (output, state), for one step or, in a class without Cell in its name, for a sequence."""

    several: ClassVar[bool]
    detach_reset: ClassVar[bool] = False

    def _reset_states(self) -> None:
        """It keeps none."""

    _detach_states = _reset_states

    def forward(self, input_tensor: Tensor, state: Any = None) -> Any:
        if input_tensor.is_sparse:
            return super().forward(input_tensor, state)  # type: ignore[misc]
        x_seq = input_tensor if self.several else input_tensor.unsqueeze(0)
        stores = self.several and self.record_states
        output, state = self._run(x_seq, self._fallback(x_seq) if state is None else state, stores)
        return (output if self.several else output.squeeze(0)), state

    def _fallback(self, x_seq: Tensor) -> Any:
        return self.state_fallback(x_seq if self.several else x_seq[0])

    def _run(self, x_seq: Tensor, state: Any, stores: bool) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def _membrane(self, x: Tensor) -> Membrane:
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32

        def number(name: str) -> Tensor | None:
            value = getattr(self.p, name, None)
            return None if value is None else torch.as_tensor(value).to(x.device, dtype)

        v_leak, v_th, v_reset = number("v_leak"), number("v_th"), number("v_reset")
        # As they are multiplied, before they are rounded to the type of x.
        d, e = (
            torch.as_tensor(self.dt * getattr(self.p, name, 1 / self.dt)).to(x.device, dtype)
            for name in ("tau_mem_inv", "tau_syn_inv")
        )
        soft = getattr(self.p, "reset_method", None) is reset.reset_subtract
        return Membrane(d, e, v_leak, v_th, None if soft else v_reset)


def _after(x_seq: Tensor, i: Tensor) -> Tensor:
    """The input with the current that is left from the step before."""
    return torch.cat((x_seq[:1] + i, x_seq[1:])) if len(x_seq) > 1 else x_seq + i


def _synaptic(
    x_seq: Tensor, v: Tensor, i: Tensor, m: Membrane, surrogate: Surrogate, detach_reset: bool, store_v_seq: bool
) -> tuple[Tensor, Tensor, Tensor]:
    spikes, w, j = functional.cuba(
        m.d * _after(x_seq, i),
        (v - m.v_leak).expand(x_seq.shape[1:]),
        alpha=1 - m.e,
        beta=1 - m.d,
        v_threshold=m.v_threshold - m.v_leak,
        v_reset=m.v_reset - m.v_leak,
        strict=True,
        detach_reset=detach_reset,
        surrogate=surrogate,
        store_v_seq=store_v_seq,
    )
    return spikes, w + m.v_leak, j * ((1 - m.e) / m.d)


class LIF(Neuron, norse.torch.LIF):
    several = True

    def _run(self, x_seq: Tensor, state: Any, stores: bool) -> tuple[Tensor, Any]:
        rest = spike_surrogate(self.p), self.detach_reset, stores
        spikes, v, i = _synaptic(x_seq, state.v, state.i, self._membrane(x_seq), *rest)
        return spikes, type(state)(v=v, i=i)


class LIFCell(Neuron, norse.torch.LIFCell):
    several = False
    _run = LIF._run


class LIFBoxCell(Neuron, norse.torch.LIFBoxCell):
    """A membrane whose current is gone after a step."""

    several = False

    def _run(self, x_seq: Tensor, state: Any, stores: bool) -> tuple[Tensor, Any]:
        m = self._membrane(x_seq)
        spikes, w, _ = functional.cuba(
            m.d * x_seq,
            (state.v - m.v_leak).expand(x_seq.shape[1:]),
            alpha=0.0,
            beta=1 - m.d,
            v_threshold=m.v_threshold - m.v_leak,
            v_reset=None if m.v_reset is None else m.v_reset - m.v_leak,
            strict=True,
            surrogate=spike_surrogate(self.p),
        )
        return spikes, type(state)(v=w + m.v_leak)


class IAF(Neuron, norse.torch.IAF):
    several = True

    def _run(self, x_seq: Tensor, state: Any, stores: bool) -> tuple[Tensor, Any]:
        m = self._membrane(x_seq)
        spikes, v = functional.if_(
            x_seq,
            state.v.to(x_seq.device).expand(x_seq.shape[1:]),
            v_threshold=m.v_threshold,
            v_reset=m.v_reset,
            strict=True,
            surrogate=spike_surrogate(self.p),
            store_v_seq=stores,
        )
        return spikes, type(state)(v=v)


class IAFCell(Neuron, norse.torch.IAFCell):
    several = False
    _run = IAF._run


class LI(Neuron, norse.torch.LI):
    several = True

    def _run(self, x_seq: Tensor, state: Any, stores: bool) -> tuple[Tensor, Any]:
        m = self._membrane(x_seq)
        current, _ = functional.li(_after(x_seq, state.i), tau=1 / m.e, decay_input=False)
        w = (state.v - m.v_leak).expand(x_seq.shape[1:])
        v_seq = functional.li(current, w, tau=1 / m.d)[0] + m.v_leak
        v, i = (v_seq, current) if stores else (v_seq[-1], current[-1])
        return v_seq, type(state)(v=v, i=i * (1 - m.e))


class LICell(Neuron, norse.torch.LICell):
    several = False
    _run = LI._run


class LIBoxCell(Neuron, norse.torch.LIBoxCell):
    several = False

    def _run(self, x_seq: Tensor, state: Any, stores: bool) -> tuple[Tensor, Any]:
        m = self._membrane(x_seq)
        w = (state.v - m.v_leak).expand(x_seq.shape[1:])
        v_seq = functional.li(x_seq, w, tau=1 / m.d)[0] + m.v_leak
        return v_seq, type(state)(v=v_seq[-1])


class LILinearCell(Neuron, norse.torch.LILinearCell):
    several = False

    def _fallback(self, x_seq: Tensor) -> Any:
        zeros = x_seq.new_zeros(x_seq.shape[1], self.hidden_size)
        return norse.torch.LIState(v=self.p.v_leak.detach(), i=zeros)

    def _run(self, x_seq: Tensor, state: Any, stores: bool) -> tuple[Tensor, Any]:
        return LI._run(self, torch.nn.functional.linear(x_seq, self.input_weights), state, stores)


class LIFRecurrent(Neuron, norse.torch.LIFRecurrent):
    """Step by step, since the spikes come back through weights."""

    several = True

    def _run(self, x_seq: Tensor, state: Any, stores: bool) -> tuple[Tensor, Any]:
        m, surrogate = self._membrane(x_seq), spike_surrogate(self.p)
        states = []
        for x in torch.nn.functional.linear(x_seq, self.input_weights):
            total = x + torch.nn.functional.linear(state.z, self.recurrent_weights)
            z, v, i = _synaptic(total.unsqueeze(0), state.v, state.i, m, surrogate, True, False)
            state = type(state)(z=z.squeeze(0), v=v, i=i)
            states.append(state)
        spikes = torch.stack([s.z for s in states])
        return spikes, type(state)(*map(torch.stack, zip(*states, strict=True))) if stores else state


class LIFRecurrentCell(Neuron, norse.torch.LIFRecurrentCell):
    several = False
    _run = LIFRecurrent._run


CONVERTED: dict[type, type[Converted]] = {
    getattr(norse.torch, cls.__name__): cls
    for cls in (
        *(LIF, LIFCell, LIFBoxCell, LIFRecurrent, LIFRecurrentCell),
        *(IAF, IAFCell, LI, LICell, LIBoxCell, LILinearCell),
    )
}

_REFRACTORY = "nearest: snnkern.nn.RefractoryLIF, whose gradient does not go through the steps of rest"
NEAREST = {
    "LIFRefracCell": _REFRACTORY,
    "LIFRefracRecurrentCell": _REFRACTORY,
    "LIFRefracRecurrent": _REFRACTORY,
    **dict.fromkeys(("LSNN", "LSNNCell", "LSNNRecurrent", "LSNNRecurrentCell"), "nearest: snnkern.nn.ALIF"),
    **dict.fromkeys(("LIFAdEx", "LIFAdExCell", "LIFAdExRecurrent", "LIFAdExRecurrentCell"), "nearest: snnkern.nn.AdEx"),
    **dict.fromkeys(("LIFEx", "LIFExCell", "LIFExRecurrent", "LIFExRecurrentCell"), "nearest: snnkern.nn.EIF"),
    **dict.fromkeys(("Izhikevich", "IzhikevichCell", "IzhikevichRecurrent"), "nearest: snnkern.nn.Izhikevich"),
}

# The other modules of norse.torch.module are layers.
_NEURONS = ("lif", "iaf", "leaky", "lsnn", "izhikevich", "coba", "snn")


def is_neuron(kind: type) -> bool:
    places = (base.__module__.rpartition(".") for base in kind.__mro__)
    return any(place == "norse.torch.module" and name.startswith(_NEURONS) for place, _, name in places)


def refusal(module: Any) -> str | None:
    p = module.p
    if not hasattr(p, "method"):  # it does not spike
        return None
    try:
        spike_surrogate(p)
    except ValueError as error:
        return f"{error}; nearest: method='super' or 'triangle'"
    method = getattr(p, "reset_method", reset.reset_value)
    if method not in (reset.reset_value, reset.reset_subtract):
        return f"its reset_method {getattr(method, '__name__', method)} is not one of Norse's"
    if method is reset.reset_subtract and bool((torch.as_tensor(p.v_leak) != 0).any()):
        return "reset_subtract with a v_leak that is not 0; nearest: v_leak=0"
    return None
