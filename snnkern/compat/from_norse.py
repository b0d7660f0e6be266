"""Norse's neurons as snnkern.convert makes them.

They stay functions of an input and a state, (x, state) -> (output, state), as norse.torch.SequentialState calls them. With
d = dt * tau_mem_inv and e = dt * tau_syn_inv, a membrane with a current is snnkern's `cuba` for the input d * x: potentials
are measured from v_leak, and the current is that of the operator, times (1 - e) / d, since theirs decays after the membrane
has seen it. Sparse inputs go the way of Norse.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import norse.torch
import torch
from norse.torch.functional import reset
from norse.torch.functional.lif_refrac import compute_refractory_update
from torch import Tensor

from .. import functional
from .. import surrogate as surrogates
from .._surrogate import Surrogate
from .convert import Converted, Given, number


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
    """The parameters of a membrane: numbers where reading them is free, tensors where they are learned or on a device.

    None: a neuron has not this one, or is reset softly.
    """

    d: Any
    e: Any
    v_leak: Any
    v_threshold: Any
    v_reset: Any

    @classmethod
    def of(cls, p: Any, dt: float) -> Membrane:
        # As Norse multiplies them, before they are rounded to the type of x.
        d, e = (dt * getattr(p, name, 1 / dt) for name in ("tau_mem_inv", "tau_syn_inv"))
        v_reset = None if getattr(p, "reset_method", None) is reset.reset_subtract else getattr(p, "v_reset", None)
        return cls(*map(number, (d, e, getattr(p, "v_leak", 0.0), getattr(p, "v_th", None), v_reset)))

    def beside(self, x: Tensor) -> Membrane:
        """With its tensors on the device and of the type of the states of x."""
        return Membrane(*(value.to(x.device, _state(x)) if isinstance(value, Tensor) else value for value in self))

    def above_leak(self, v: Tensor, x_seq: Tensor) -> Tensor:
        """A potential, one for each neuron, as the operators know it."""
        return (v.to(x_seq.device, _state(x_seq)) - self.v_leak).expand(x_seq.shape[1:])


def _state(x: Tensor) -> torch.dtype:
    """The type of the states of x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def membrane_parameters(p: Any) -> Any:
    """Those of the membrane; a refractory neuron's parameters hold them."""
    return getattr(p, "lif", p)


class Neuron(Converted):
    """(x, state) -> (output, state), for one step or, in a class without Cell in its name, for a sequence."""

    several: ClassVar[bool]
    detach_reset: ClassVar[bool] = False

    def _reset_states(self) -> None:
        """It keeps none."""

    _detach_states = _reset_states

    def _adopted(self) -> None:
        self._membrane_of = self.p, Membrane.of(membrane_parameters(self.p), self.dt)

    def _membrane(self, x: Tensor) -> Membrane:
        if self._membrane_of[0] is not self.p:  # they have been replaced
            self._adopted()
        return self._membrane_of[1].beside(x)

    def forward(self, input_tensor: Tensor, state: Any = None) -> Any:
        if input_tensor.is_sparse:
            return super().forward(input_tensor, state)  # type: ignore[misc]
        x_seq = input_tensor if self.several else input_tensor.unsqueeze(0)
        stores = self.several and self.record_states
        output, state = self._run(x_seq, self._fallback(x_seq) if state is None else state, stores)
        return (output if self.several else output.squeeze(0)), state

    def _fallback(self, x_seq: Tensor) -> Any:
        state = self.state_fallback(x_seq if self.several else x_seq[0])
        return state._replace(i=None) if "i" in state._fields else state  # None: no current

    def _run(self, x_seq: Tensor, state: Any, stores: bool) -> tuple[Tensor, Any]:
        raise NotImplementedError


def _after(x_seq: Tensor, i: Tensor | None) -> Tensor:
    """The input with the current that is left from the step before."""
    if i is None:
        return x_seq
    return torch.cat((x_seq[:1] + i, x_seq[1:])) if len(x_seq) > 1 else x_seq + i


def _synaptic(
    x_seq: Tensor,
    v: Tensor,
    i: Tensor | None,
    m: Membrane,
    surrogate: Surrogate,
    detach_reset: bool,
    store_v_seq: bool,
    cuba: Callable[..., tuple[Tensor, Tensor, Tensor]] = functional.cuba,
) -> tuple[Tensor, Tensor, Tensor]:
    if i is None:  # Norse begins with a current of float32, which makes that the type of the spikes
        x_seq = x_seq.to(_state(x_seq))
    spikes, w, j = cuba(
        m.d * _after(x_seq, i),
        v_init=m.above_leak(v, x_seq),
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
            m.above_leak(state.v, x_seq),
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
        # The current of LI begins in float32, as in _synaptic; that of a cell in the type of x.
        kind = _state(x_seq) if self.several else x_seq.dtype
        w_seq, w, j = functional.cuba_li(
            m.d * _after(x_seq, state.i),
            m.above_leak(state.v, x_seq),
            alpha=1 - m.e,
            beta=1 - m.d,
            store_v_seq=stores,
        )
        return (w_seq + m.v_leak).to(kind), type(state)(v=w + m.v_leak, i=j * ((1 - m.e) / m.d))


class LICell(Neuron, norse.torch.LICell):
    several = False
    _run = LI._run


class LIBoxCell(Neuron, norse.torch.LIBoxCell):
    several = False

    def _run(self, x_seq: Tensor, state: Any, stores: bool) -> tuple[Tensor, Any]:
        m = self._membrane(x_seq)
        w = m.above_leak(state.v, x_seq)
        v_seq = functional.li(x_seq, w, tau=1 / m.d)[0] + m.v_leak
        return v_seq, type(state)(v=v_seq[-1])


class LILinearCell(Neuron, norse.torch.LILinearCell):
    several = False

    def _fallback(self, x_seq: Tensor) -> Any:
        return norse.torch.LIState(v=torch.as_tensor(self.p.v_leak).detach(), i=None)

    def _run(self, x_seq: Tensor, state: Any, stores: bool) -> tuple[Tensor, Any]:
        return LI._run(self, torch.nn.functional.linear(x_seq, self.input_weights), state, stores)


class LIFRefracCell(Neuron, norse.torch.LIFRefracCell):
    """The operator integrates and fires; Norse's own function keeps still what rests, and its gradient is theirs."""

    several = False

    def _run(self, x_seq: Tensor, state: Any, stores: bool) -> tuple[Tensor, Any]:
        lif, surrogate = state.lif, spike_surrogate(self.p.lif)
        spikes, v, i = _synaptic(x_seq, lif.v, lif.i, self._membrane(x_seq), surrogate, False, False)
        v, z, rho = compute_refractory_update(state, spikes.squeeze(0), v, self.p)
        return z.unsqueeze(0), type(state)(lif=type(lif)(v=v, i=i), rho=rho)


class Recurrent(Neuron):
    """The spikes come back through weights, within the operator."""

    def _run(self, x_seq: Tensor, state: Any, stores: bool) -> tuple[Tensor, Any]:
        m, x_seq = self._membrane(x_seq), torch.nn.functional.linear(x_seq, self.input_weights)
        # Where samples differ in d, what comes back is multiplied by another number in each; the operator wants a batch.
        if (isinstance(m.d, Tensor) and m.d.dim() > 1) or x_seq.dim() < 3:
            return self._steps(x_seq, state, stores, m)
        # A membrane takes the share d of its current, of what comes back as well: a row of the weights for each neuron.
        share = m.d.unsqueeze(-1) if isinstance(m.d, Tensor) else m.d
        cuba = functools.partial(
            functional.recurrent_cuba,
            weight_hh=share * self.recurrent_weights,
            spike_init=state.z.to(x_seq.device).expand(x_seq.shape[1:]),
        )
        spikes, v, i = _synaptic(x_seq, state.v, state.i, m, spike_surrogate(self.p), True, stores, cuba)
        return spikes, type(state)(z=spikes if stores else spikes[-1], v=v, i=i)

    def _steps(self, x_seq: Tensor, state: Any, stores: bool, m: Membrane) -> tuple[Tensor, Any]:
        """Step by step, from the input behind its weights."""
        surrogate = spike_surrogate(membrane_parameters(self.p))
        spikes, states = [], []
        for x in x_seq:
            lif = getattr(state, "lif", state)
            total = x + torch.nn.functional.linear(lif.z, self.recurrent_weights)
            z, v, i = _synaptic(total.unsqueeze(0), lif.v, lif.i, m, surrogate, True, False)
            state = self._next(state, z.squeeze(0), v, i)
            spikes.append(getattr(state, "lif", state).z)
            states.append(state)
        return torch.stack(spikes), _stacked(states) if stores else state

    def _next(self, state: Any, z: Tensor, v: Tensor, i: Tensor) -> Any:
        """The state after a step, from that before it."""
        return type(state)(z=z, v=v, i=i)


class Refractory(Recurrent):
    """Step by step: what rests feeds nothing back."""

    def _run(self, x_seq: Tensor, state: Any, stores: bool) -> tuple[Tensor, Any]:
        m = self._membrane(x_seq)
        return self._steps(torch.nn.functional.linear(x_seq, self.input_weights), state, stores, m)

    def _next(self, state: Any, z: Tensor, v: Tensor, i: Tensor) -> Any:
        v, z, rho = compute_refractory_update(state, z, v, self.p)
        return type(state)(lif=type(state.lif)(z=z, v=v, i=i), rho=rho)


def _stacked(states: Sequence[Any]) -> Any:
    """Tuples of states as one tuple of all steps."""
    if isinstance(states[0], Tensor):
        return torch.stack(list(states))
    return type(states[0])(*map(_stacked, zip(*states, strict=True)))


class LIFRecurrent(Recurrent, norse.torch.LIFRecurrent):
    several = True


class LIFRecurrentCell(Recurrent, norse.torch.LIFRecurrentCell):
    several = False


class LIFRefracRecurrent(Refractory, norse.torch.LIFRefracRecurrent):
    several = True


class LIFRefracRecurrentCell(Refractory, norse.torch.LIFRefracRecurrentCell):
    several = False


CONVERTED: dict[type, type[Converted]] = {
    getattr(norse.torch, cls.__name__): cls
    for cls in (
        *(LIF, LIFCell, LIFBoxCell, LIFRecurrent, LIFRecurrentCell),
        *(LIFRefracCell, LIFRefracRecurrent, LIFRefracRecurrentCell),
        *(IAF, IAFCell, LI, LICell, LIBoxCell, LILinearCell),
    )
}

NEAREST = {
    **dict.fromkeys(("LSNN", "LSNNCell", "LSNNRecurrent", "LSNNRecurrentCell"), "nearest: snnkern.nn.ALIF"),
    **dict.fromkeys(("LIFAdEx", "LIFAdExCell", "LIFAdExRecurrent", "LIFAdExRecurrentCell"), "nearest: snnkern.nn.AdEx"),
    **dict.fromkeys(("LIFEx", "LIFExCell", "LIFExRecurrent", "LIFExRecurrentCell"), "nearest: snnkern.nn.EIF"),
    **dict.fromkeys(("Izhikevich", "IzhikevichCell", "IzhikevichRecurrent"), "nearest: snnkern.nn.Izhikevich"),
}

# The other modules of norse.torch.module are layers, and so is Lift.
_NEURONS = ("lif", "iaf", "leaky", "lsnn", "izhikevich", "coba", "snn")


def is_neuron(kind: type) -> bool:
    places = (base.__module__.rpartition(".") for base in kind.__mro__)
    return any(
        place == "norse.torch.module" and name.startswith(_NEURONS) and name != "lift" for place, _, name in places
    )


def refusal(module: Any, given: Given) -> str | None:
    p = membrane_parameters(module.p)
    m = Membrane.of(p, module.dt)
    for name, share in (("tau_mem_inv", m.d), ("tau_syn_inv", m.e)):
        if not bool(((torch.as_tensor(share) > 0) & (torch.as_tensor(share) <= 1)).all()):
            return f"dt * {name} is not above 0 and at most 1; nearest: a smaller dt"
    if not hasattr(p, "method"):  # it does not spike
        return None
    try:
        spike_surrogate(p)
    except ValueError as error:
        return f"{error}; nearest: method='super' or 'triangle'"
    method = getattr(p, "reset_method", reset.reset_value)
    if method not in (reset.reset_value, reset.reset_subtract):
        return f"its reset_method {getattr(method, '__name__', method)} is not one of Norse's"
    if method is reset.reset_subtract and bool((torch.as_tensor(m.v_leak) != 0).any()):
        return "reset_subtract with a v_leak that is not 0; nearest: v_leak=0"
    return None
