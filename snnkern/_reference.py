"""The time loop of snnkern.reference: the equations of codegen/specification/neurons.py called with tensors, step by step.

Every operation is PyTorch's own, so that autograd gives the gradients, of any order and in both modes.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ._parameters import (
    check_dtype,
    check_is_tensor,
    check_range,
    check_tensor,
    check_tensor_parameter,
    inverse,
    number,
    switch,
)
from ._specification import NEURONS
from ._surrogate import Surrogate, check_surrogate
from .codegen.specification.base import CONVENTIONS, Neuron, Range, Step, blend

_FLOAT32_MAX = torch.finfo(torch.float32).max


class _Fire(torch.autograd.Function):
    """The step function, or the surrogate's primitive, with the surrogate gradient as derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, surrogate: Surrogate) -> Tensor:
        return (u >= 0).to(u.dtype) if surrogate.spiking else surrogate.primitive(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        (u, ctx.surrogate) = inputs
        ctx.save_for_backward(u)
        ctx.save_for_forward(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grad * ctx.surrogate.gradient(u), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (u,) = ctx.saved_tensors
        slope: Tensor = ctx.surrogate.gradient(u)
        return tangent * slope


class _Select(torch.autograd.Function):
    """a where the spike s is 1, else b. torch.where would drop the gradient of the spike; arithmetic would make inf NaN."""

    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(s != 0, a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s, a, b = ctx.saved_tensors
        fired = s != 0
        grad_a = torch.where(fired, grad, 0.0)
        return grad * (a - b), grad_a.sum_to_size(a.shape), torch.where(fired, 0.0, grad)

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, da: Tensor, db: Tensor) -> Tensor:
        s, a, b = ctx.saved_tensors
        choice: Tensor = torch.where(s != 0, da, db) + ds * (a - b)
        return choice


def _check_tensors(
    where: str, neuron: type[Neuron], x_seq: Tensor, learned: dict[str, Tensor], init: list[Tensor | None]
) -> None:
    """x_seq, the learned parameters and the initial states."""
    check_is_tensor(where, "x_seq", x_seq)
    if x_seq.dim() < 2:
        dimensions = "1 dimension" if x_seq.dim() == 1 else "0 dimensions"
        raise RuntimeError(f"{where}: x_seq must be [T, N, ...] with at least 2 dimensions, got {dimensions}")
    check_dtype(where, "x_seq", x_seq)
    if x_seq.shape[0] < 1:
        raise RuntimeError(f"{where}: x_seq must have T >= 1 time steps, got T = 0")
    for t in neuron.required():
        check_is_tensor(where, t.name, learned[t.name])
        check_tensor_parameter(where, t.name, learned[t.name], t.range, x_seq)
    for state, value in zip(neuron.states, init, strict=True):
        name = f"{state.name}_init"
        if value is not None:
            check_is_tensor(where, name, value)
            check_tensor(where, name, value, x_seq)
            want, got = list(x_seq.shape[1:]), list(value.shape)
            if got != want:
                raise RuntimeError(f"{where}: {name} must have the shape of x_seq[0], {want}, got {got}")


def _check_number(where: str, name: str, value: float, limits: Range, x_seq: Tensor) -> None:
    """A number is in range, and in that of the dtype that it is rounded to."""
    check_range(where, name, value, limits)
    if x_seq.dtype != torch.float64 and _FLOAT32_MAX < abs(value) < math.inf:
        raise ValueError(
            f"{where}: {name} must be within the range of float32 for x_seq of {x_seq.dtype}, got {value:g}"
        )


def _checked(where: str, neuron: type[Neuron], x_seq: Tensor, given: dict[str, Any]) -> dict[str, Any]:
    """The numbers, which may be tensors or None, and the switches."""
    out = {flag.name: switch(where, flag.name, given[flag.name]) for flag in neuron.flags()}
    for q in neuron.numbers():
        value = given[q.name]
        if isinstance(value, Tensor):
            check_tensor_parameter(where, q.name, value, q.range, x_seq)
        elif value is not None or q.none is None:
            value = number(where, q.name, value, q.kind)
            _check_number(where, q.name, value, q.range, x_seq)
        out[q.name] = value
    return out


def _check_surrogate(where: str, surrogate: Any, x_seq: Tensor) -> None:
    check_surrogate(where, surrogate)
    for p in surrogate.equations.parameters:
        name = f"surrogate_params: {p.name} of surrogate '{surrogate.name}'"
        _check_number(where, name, getattr(surrogate, p.name), p.range, x_seq)
    if not surrogate.spiking and x_seq.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{where}: spiking=False needs float32 or float64 x_seq, got {x_seq.dtype}")


def _check_conventions(where: str, neuron: type[Neuron], parameters: dict[str, Any], smooth: bool) -> None:
    """What conventions that are not at their defaults ask of the rest."""
    if smooth:
        names = ", ".join(convention.name for convention in neuron.conventions)
        raise ValueError(f"{where}: spiking=False needs {names} at their defaults")
    most, threshold = parameters.get("max_spikes", 1.0), parameters["v_threshold"]
    is_given = not isinstance(most, Tensor) and not isinstance(threshold, Tensor)
    if is_given and most != 1 and threshold <= 0:
        raise ValueError(f"{where}: max_spikes > 1 needs v_threshold > 0, got {threshold:g}")


GROUP = 32
"""Spikes that are fed back are added up in groups of so many neighbours: RecurrentArgs of csrc/kernels/multistep.h."""


@dataclass(frozen=True)
class Recurrence:
    """What feeds the spikes of a step back to the neurons of the next: the arguments of the functions, as users give them."""

    weight_hh: Tensor
    bias_hh: Tensor | None
    spike_init: Tensor | None
    detach_recurrent: bool

    def check(self, where: str, x_seq: Tensor) -> None:
        if x_seq.dim() < 3:
            raise RuntimeError(
                f"{where}: x_seq must be [T, N, ..., H] with at least 3 dimensions, got {x_seq.dim()} dimensions"
            )
        H = x_seq.shape[-1]
        check_is_tensor(where, "weight_hh", self.weight_hh)
        each, pair = "a value for each neuron, ", "a weight for each pair of neurons, or a value for each neuron, "
        weights = ([H], each) if self.weight_hh.dim() == 1 else ([H, H], pair)
        wanted = {"weight_hh": weights, "bias_hh": ([H], each)}
        wanted["spike_init"] = (list(x_seq.shape[1:]), "the shape of x_seq[0], ")
        for name, (shape, what) in wanted.items():
            value = getattr(self, name)
            if value is None:
                continue
            check_is_tensor(where, name, value)
            check_tensor(where, name, value, x_seq)
            if list(value.shape) != shape:
                raise RuntimeError(f"{where}: {name} must have {what}{shape}, got {list(value.shape)}")
        switch(where, "detach_recurrent", self.detach_recurrent)

    def prepared(self, x_seq: Tensor, dtype: torch.dtype) -> Recurrence:
        """Its tensors in the precision of x_seq, and in the state dtype."""

        def taken(t: Tensor | None) -> Tensor | None:
            return None if t is None else _rounded(t.to(dtype), x_seq.dtype)

        spike_init = torch.zeros_like(x_seq[0], dtype=dtype) if self.spike_init is None else taken(self.spike_init)
        weight = taken(self.weight_hh)
        assert weight is not None
        return Recurrence(weight, taken(self.bias_hh), spike_init, self.detach_recurrent)

    def input(self, spike: Tensor) -> Tensor:
        """What the neurons get of the spikes of the step before, added up in the order that is defined."""
        spike = spike.detach() if self.detach_recurrent else spike
        if self.weight_hh.dim() == 1:
            z = spike * self.weight_hh
        else:
            fill = -spike.shape[-1] % GROUP  # zeros add nothing
            # Of the spikes [..., H] and the weights [H, H], the j-th of each group, for j = 0, 1, ...
            spikes, weights = (
                torch.nn.functional.pad(t, (0, fill)).reshape(*t.shape[:-1], -1, GROUP).unbind(-1)
                for t in (spike, self.weight_hh)
            )
            groups = functools.reduce(torch.add, (s.unsqueeze(-2) * w for s, w in zip(spikes, weights, strict=True)))
            z = functools.reduce(torch.add, groups.unbind(-1))
        return z if self.bias_hh is None else z + self.bias_hh


def _rounded(t: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest values that a dtype has, in the dtype of t; the gradient is not rounded."""
    return t if t.dtype == dtype else t + (t.to(dtype).to(t.dtype) - t).detach()


def multistep(
    key: str,
    x_seq: Tensor,
    init: list[Tensor | None],
    learned: dict[str, Tensor],
    parameters: dict[str, Any],
    surrogate: Surrogate | None,
    store_v_seq: bool,
    recurrence: Recurrence | None = None,
) -> tuple[Tensor, ...]:
    """Runs a neuron over time: (spikes, then each state, the last or all)."""
    neuron = NEURONS[key]
    name = "if_" if neuron.name == "if" else neuron.name
    where = f"snnkern.reference.{name if recurrence is None else f'recurrent_{neuron.name}'}"
    _check_tensors(where, neuron, x_seq, learned, init)
    if recurrence is not None:
        recurrence.check(where, x_seq)
    parameters = _checked(where, neuron, x_seq, parameters)
    store_v_seq = switch(where, "store_v_seq", store_v_seq)
    if neuron.has_surrogate:
        _check_surrogate(where, surrogate, x_seq)
    dtype = torch.float64 if x_seq.dtype == torch.float64 else torch.float32
    soft = parameters.get("v_reset") is None  # also where the neuron has none

    def scalar(value: float) -> Tensor:
        return torch.tensor(value, dtype=dtype, device=x_seq.device)

    p = SimpleNamespace(v_reset=scalar(0.0))
    in_time: dict[str, Tensor] = {}

    def put(name: str, value: Tensor) -> None:
        if value.dim() == x_seq.dim():  # it has a value for each step
            in_time[name] = value.expand(x_seq.shape[0], *value.shape[1:])
        setattr(p, name, value)

    for name, value in learned.items():
        put(name, value.to(dtype))
    conventions = [(parameters[c.name], c.default) for c in neuron.conventions]
    general = any(isinstance(value, Tensor) or value != default for value, default in conventions)
    smooth = surrogate is not None and not surrogate.spiking
    if general:
        _check_conventions(where, neuron, parameters, smooth)
    for convention in CONVENTIONS:  # an equation may ask for those that the neuron has not
        setattr(p, convention.name, convention.default)
    for flag in neuron.flags():
        setattr(p, flag.name, parameters[flag.name])
    for q in neuron.numbers():
        value = parameters[q.name]
        if isinstance(value, Tensor):
            put(q.symbol, inverse(value, x_seq) if q.inverse else value.to(dtype))
        elif value is None and q.none is not None:
            setattr(p, q.symbol, scalar(q.none))
        else:
            setattr(p, q.symbol, scalar(1 / value if q.inverse else value))

    select = blend if smooth else _Select.apply

    def fire(u: Tensor) -> Any:
        return _Fire.apply(u, surrogate)  # type: ignore[no-untyped-call]

    thresholds = [parameters[q.name] for q in neuron.numbers() if q.range.infinite and q.inverse is None]
    infinite = any(isinstance(value, Tensor) or value == math.inf for value in thresholds)
    step = Step(fire, select, "soft" if soft else "hard", general, math.inf if infinite else None)

    def enter(t: int) -> None:
        for name, value in in_time.items():
            setattr(p, name, value[t])

    enter(0)
    shape = x_seq.shape[1:]
    states = []
    for state, given in zip(neuron.states, init, strict=True):
        start = getattr(p, state.start) if state.start != "0" else scalar(0.0)
        states.append(start.expand(shape) if given is None else given.to(dtype))
    spikes: list[Tensor] = []
    sequences: list[list[Tensor]] = [[] for _ in states]
    back = None if recurrence is None else recurrence.prepared(x_seq, dtype)
    for t, x in enumerate(x_seq.to(dtype).unbind(0)):
        enter(t)
        y = x
        if back is not None:
            before = _rounded(spikes[-1], x_seq.dtype) if spikes else back.spike_init
            assert before is not None
            y = x + back.input(before)
        s, states = neuron.step(y, states, p, step)
        spikes.append(s)
        for sequence, value in zip(sequences, states, strict=True):
            sequence.append(value)
    results = [torch.stack(q) for q in sequences] if store_v_seq else states
    return (torch.stack(spikes).to(x_seq.dtype), *results)
