"""The time loop of snnkern.reference: the equations of codegen/specification/neurons.py called with tensors, step by step.

Every operation is PyTorch's own, so that autograd gives the gradients, of any order and in both modes.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ._parameters import inverse
from ._specification import NEURONS
from ._surrogate import Surrogate
from .codegen.specification.base import CONVENTIONS, Step, blend


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


def multistep(
    key: str,
    x_seq: Tensor,
    init: list[Tensor | None],
    learned: dict[str, Tensor],
    parameters: dict[str, Any],
    surrogate: Surrogate | None,
    store_v_seq: bool,
) -> tuple[Tensor, ...]:
    """Runs a neuron over time: (spikes, then each state, the last or all)."""
    neuron = NEURONS[key]
    if x_seq.dim() < 2 or x_seq.shape[0] < 1:
        raise ValueError(f"x_seq must be [T, N, ...] with T >= 1, got shape {tuple(x_seq.shape)}")
    dtype = torch.float64 if x_seq.dtype == torch.float64 else torch.float32
    soft = parameters.get("v_reset") is None  # also where the neuron has none

    def scalar(value: float) -> Tensor:
        return torch.tensor(value, dtype=dtype, device=x_seq.device)

    p = SimpleNamespace(v_reset=scalar(0.0), **{key: value.to(dtype) for key, value in learned.items()})
    conventions = [(parameters[c.name], c.default) for c in neuron.conventions]
    general = any(isinstance(value, Tensor) or value != default for value, default in conventions)
    smooth = surrogate is not None and not surrogate.spiking
    if general and smooth:
        names = ", ".join(convention.name for convention in neuron.conventions)
        raise ValueError(f"spiking=False needs {names} at their defaults")
    most, threshold = parameters.get("max_spikes", 1.0), parameters.get("v_threshold", 1.0)
    if not isinstance(most, Tensor) and most != 1 and not isinstance(threshold, Tensor) and threshold <= 0:
        raise ValueError(f"max_spikes > 1 needs v_threshold > 0, got {threshold:g}")
    for convention in CONVENTIONS:  # an equation may ask for those that the neuron has not
        setattr(p, convention.name, convention.default)
    for switch in neuron.flags():
        setattr(p, switch.name, parameters[switch.name])
    for q in neuron.numbers():
        value = parameters[q.name]
        if isinstance(value, Tensor):
            setattr(p, q.symbol, inverse(value, x_seq) if q.inverse else value.to(dtype))
        elif value is None and q.none is not None:
            setattr(p, q.symbol, scalar(q.none))
        else:
            if not q.range.holds(value):
                raise ValueError(f"{q.name} must be {q.range}, got {value}")
            setattr(p, q.symbol, scalar(1 / value if q.inverse else value))

    select = blend if smooth else _Select.apply

    def fire(u: Tensor) -> Any:
        return _Fire.apply(u, surrogate)  # type: ignore[no-untyped-call]

    step = Step(fire, select, "soft" if soft else "hard", general)

    shape = x_seq.shape[1:]
    states = []
    for state, given in zip(neuron.states, init, strict=True):
        start = getattr(p, state.start) if state.start != "0" else scalar(0.0)
        states.append(start.expand(shape) if given is None else given.to(dtype))
    spikes: list[Tensor] = []
    sequences: list[list[Tensor]] = [[] for _ in states]
    for x in x_seq.to(dtype).unbind(0):
        s, states = neuron.step(x, states, p, step)
        spikes.append(s)
        for sequence, value in zip(sequences, states, strict=True):
            sequence.append(value)
    results = [torch.stack(q) for q in sequences] if store_v_seq else states
    return (torch.stack(spikes).to(x_seq.dtype), *results)
