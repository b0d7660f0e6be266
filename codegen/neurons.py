"""The neurons: one class each, which states its parameters and its equations once.

From a class come the CUDA and CPU kernels, their back-propagation through time, the operator's schema and checks, the
reference in plain PyTorch and the tables in the docs. To add a neuron, add a class here and name it in NEURONS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .expr import where


@dataclass(frozen=True)
class Range:
    """The legal values of a parameter: finite, and within these bounds."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    integer: bool = False

    def __str__(self) -> str:
        bounds = []
        if self.low != -math.inf:
            bounds.append(f"{'>' if self.low_open else '>='} {self.low:g}")
        if self.high != math.inf:
            bounds.append(f"<= {self.high:g}")
        kind = "an integer" if self.integer else "a finite number"
        return " ".join([kind, " and ".join(bounds)]).strip()

    def holds(self, value: float) -> bool:
        if not math.isfinite(value) or (self.integer and value != math.floor(value)):
            return False
        return (value > self.low if self.low_open else value >= self.low) and value <= self.high


FINITE = Range()
POSITIVE = Range(0, low_open=True)
NOT_NEGATIVE = Range(0)


@dataclass(frozen=True)
class Float:
    """A number. With `inverse`, the equations get 1 / value under that name, computed once in double precision."""

    name: str
    default: float
    doc: str
    range: Range = FINITE
    inverse: str | None = None

    @property
    def symbol(self) -> str:
        return self.inverse or self.name

    @property
    def tensor_range(self) -> Range:
        """The range of what the equations get."""
        if self.inverse is None:
            return self.range
        return Range(0, 1 / self.range.low if self.range.low > 0 else math.inf, low_open=True)


@dataclass(frozen=True)
class Flag:
    """A switch. The equations choose by it with where(flag, a, b)."""

    name: str
    default: bool
    doc: str


@dataclass(frozen=True)
class Learned:
    """A parameter in (0, 1] that is a tensor of one element and gets a gradient.

    The module makes it as sigmoid(weight) and starts it at 1 / argument.
    """

    name: str
    doc: str
    range: Range
    argument: Float
    weight: str


@dataclass(frozen=True)
class State:
    """A variable that a neuron carries from step to step, and where it starts when the user gives no tensor."""

    name: str
    doc: str
    start: str = "0"  # a parameter's name, or 0


@dataclass(frozen=True)
class Step:
    """What tracing or the reference supplies to the equations of one step; `reset` is hard or soft."""

    spike: Any  # u -> s, with the surrogate gradient as derivative
    select: Any  # (s, a, b) -> a where s, else b; in smooth mode `blend`
    reset: str
    names: dict[Any, str] = field(default_factory=dict)  # the tracer's names for h and s in generated code


def blend(s: Any, a: Any, b: Any) -> Any:
    """The choice between a and b in smooth mode, where s is between 0 and 1."""
    return s * a + (1 - s) * b


V_THRESHOLD = Float("v_threshold", 1.0, "threshold of the membrane potential")
V_RESET = Float("v_reset", 0.0, "potential after a spike (hard reset); None resets softly: v_threshold is subtracted")
DETACH_RESET = Flag("detach_reset", False, "keep the gradient of the spike out of the reset")
Parameter = Float | Flag
TAU = Float("tau", 2.0, "membrane time constant, in time steps", Range(1), inverse="decay")
DECAY_INPUT = Flag("decay_input", True, "multiply the input by decay as well")

RESETS = ("hard", "soft")


class Neuron:
    """Base of all neurons: charge, fire, reset. A subclass states `charge`, or overrides `step` for several states."""

    name: ClassVar[str]
    """The key of the specification: lif_forward, csrc/generated/*/lif, snnkern.functional.lif."""
    module: ClassVar[str]
    """The name of the torch.nn.Module."""
    source: ClassVar[str]
    """The paper."""
    equations: ClassVar[tuple[str, ...]]
    """The charge, as the docs print it."""
    states: ClassVar[tuple[State, ...]] = (State("v", "membrane potential", start="v_reset"),)
    learned: ClassVar[tuple[Learned, ...]] = ()
    parameters: ClassVar[tuple[Parameter, ...]] = ()

    @classmethod
    def all_parameters(cls) -> tuple[Parameter, ...]:
        """The neuron's own parameters, then those of firing and reset, in the order of the operator's schema."""
        return (*cls.parameters, V_THRESHOLD, V_RESET, DETACH_RESET)

    @staticmethod
    def charge(x: Any, v: Any, p: Any) -> Any:
        """The potential h before firing, from the input x and the old potential v."""
        raise NotImplementedError

    @classmethod
    def step(cls, x: Any, states: Sequence[Any], p: Any, step: Step) -> tuple[Any, list[Any]]:
        """One time step: (x, old states) -> (spike, new states)."""
        (v,) = states
        h = cls.charge(x, v, p)
        s = step.spike(h - p.v_threshold)
        step.names.update({h: "h", s: "s"})
        return s, [cls.fire_reset(h, s, p, step)]

    @staticmethod
    def fire_reset(h: Any, s: Any, p: Any, step: Step) -> Any:
        """The potential after the spike s. A hard reset is a choice, so that an infinite h cannot become NaN."""
        s = where(p.detach_reset, s.detach(), s)
        return step.select(s, p.v_reset, h) if step.reset == "hard" else h - s * p.v_threshold


class IF(Neuron):
    """Integrate-and-fire neuron: the membrane adds up its input and forgets nothing."""

    name = "if"
    module = "IF"
    source = "Lapicque, 1907"
    equations = ("h = v + x",)

    @staticmethod
    def charge(x: Any, v: Any, p: Any) -> Any:
        return v + x


class LIF(Neuron):
    """Leaky integrate-and-fire neuron: between inputs the membrane falls back to v_reset (0 with soft reset)."""

    name = "lif"
    module = "LIF"
    source = "Gerstner et al., Neuronal Dynamics, 2014, chapter 1.3"
    equations = (
        "decay = 1 / tau",
        "h = v + (x - (v - v_reset)) * decay",
        "h = v - (v - v_reset) * decay + x   (decay_input=False)",
    )
    parameters: ClassVar[tuple[Parameter, ...]] = (TAU, DECAY_INPUT)

    @staticmethod
    def charge(x: Any, v: Any, p: Any) -> Any:
        # Both forms at once: x enters by one of two doors, and the other term is 0.
        decayed, whole = where(p.decay_input, x, 0.0), where(p.decay_input, 0.0, x)
        return v + (decayed - (v - p.v_reset)) * p.decay + whole


class ParametricLIF(LIF):
    """Leaky integrate-and-fire neuron whose decay is learned: one value for the layer, the sigmoid of a weight."""

    name = "plif"
    module = "ParametricLIF"
    source = "Fang et al., Incorporating Learnable Membrane Time Constant, ICCV 2021"
    equations = ("decay = sigmoid(w)", *LIF.equations[1:])
    learned = (
        Learned(
            "decay",
            "what the membrane forgets in a step, 1 / tau",
            Range(0, 1, low_open=True),
            argument=Float(
                "init_tau", 2.0, "membrane time constant at the start, in time steps", Range(1, low_open=True)
            ),
            weight="w",
        ),
    )
    parameters = (DECAY_INPUT,)


NEURONS: tuple[type[Neuron], ...] = (IF, LIF, ParametricLIF)
