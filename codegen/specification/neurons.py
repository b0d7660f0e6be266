"""The neurons: one class each, which states its parameters and its equations once.

From a class come the CUDA and CPU kernels, their back-propagation through time, the operator's schema and checks, the
reference in plain PyTorch and the tables in the docs. To add a neuron, add a class here and name it in NEURONS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from ..graph.expr import straight_through, where


@dataclass(frozen=True)
class Range:
    """The legal values of a parameter: finite, and within these bounds; with `infinite`, infinity as well."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    integer: bool = False
    infinite: bool = False

    def __str__(self) -> str:
        bounds = []
        if self.low != -math.inf:
            bounds.append(f"{'>' if self.low_open else '>='} {self.low:g}")
        if self.high != math.inf:
            bounds.append(f"<= {self.high:g}")
        kind = "an integer" if self.integer else "a finite number"
        return " ".join([kind, " and ".join(bounds)]).strip() + (" or inf" if self.infinite else "")

    def holds(self, value: float) -> bool:
        if value == math.inf:
            return self.infinite
        if not math.isfinite(value) or (self.integer and value != math.floor(value)):
            return False
        return (value > self.low if self.low_open else value >= self.low) and value <= self.high

    @property
    def transform(self) -> str:
        """What makes a value within these limits of a weight that may be any number."""
        if self.low == 0:
            return "sigmoid" if self.high == 1 else "exp" if self.high == math.inf else "identity"
        return "identity"


FINITE = Range()
POSITIVE = Range(0, low_open=True)
NOT_NEGATIVE = Range(0)


@dataclass(frozen=True)
class Float:
    """A number. With `inverse`, the equations get 1 / value under that name, computed once in double precision.

    With `none`, it may be None, which stands for that number.
    """

    name: str
    default: float | None
    doc: str
    range: Range = FINITE
    inverse: str | None = None
    none: float | None = None

    @property
    def number(self) -> float:
        """The default as a number."""
        return self.default if self.default is not None else self.none or 0.0

    @property
    def symbol(self) -> str:
        return self.inverse or self.name

    @property
    def kind(self) -> str:
        """What it may be, in words."""
        return "a number or a tensor" if self.none is None else "a number, a tensor or None"

    @property
    def tensor_range(self) -> Range:
        """The range of what the equations get."""
        if self.inverse is None:
            return self.range
        return Range(0, 1 / self.range.low if self.range.low > 0 else math.inf, low_open=not self.range.infinite)

    @property
    def value_key(self) -> str:
        """The key of a module's state_dict for the value itself."""
        return f"{self.name.removeprefix('init_')}_value"

    @property
    def weight_key(self) -> str:
        """The key for what a module learns, from which it makes the value: decay_logit, k_log, v_c_value."""
        if self.tensor_range.transform == "identity":
            return self.value_key
        return f"{self.symbol}_{'logit' if self.tensor_range.transform == 'sigmoid' else 'log'}"


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

    @property
    def init(self) -> Float:
        """Where a module starts it."""
        return Float(f"{self.name}_init", None, f"{self.doc} at the start and after reset()", none=0.0)


POTENTIAL = State("v", "membrane potential", start="v_reset")
POTENTIAL_FROM_0 = State("v", "membrane potential")
CURRENT = State("i", "synaptic current")


@dataclass(frozen=True)
class Step:
    """What tracing or the reference supplies to the equations of one step; `reset` is hard or soft."""

    spike: Any  # u -> s, with the surrogate gradient as derivative; equations call `spike_at`
    select: Any  # (s, a, b) -> a where s, else b; in smooth mode `blend`
    reset: str
    general: bool = False  # the neuron's conventions are in play; else they are at their defaults, and p has none
    infinite: bool = False  # a threshold may be infinite: the neuron never spikes, and no gradient passes a spike
    names: dict[Any, str] = field(default_factory=dict)  # the tracer's names for h and s in generated code

    def spike_at(self, h: Any, threshold: Any) -> Any:
        """The spike of the potential h."""
        s = self.spike(h - threshold)
        return where(threshold < math.inf, s, 0.0) if self.infinite else s

    def taken(self, s: Any, threshold: Any) -> Any:
        """What a soft reset takes off after the spike s; 0 * infinity would be NaN."""
        return s * (where(threshold < math.inf, threshold, 0.0) if self.infinite else threshold)


def blend(s: Any, a: Any, b: Any) -> Any:
    """The choice between a and b in smooth mode, where s is between 0 and 1."""
    return s * a + (1 - s) * b


V_THRESHOLD = Float(
    "v_threshold", 1.0, "threshold of the membrane potential; at inf the neuron never spikes", Range(infinite=True)
)
V_RESET = Float(
    "v_reset", 0.0, "potential after a spike (hard reset); None resets softly: v_threshold is subtracted", none=0.0
)
DETACH_RESET = Flag("detach_reset", False, "keep the gradient of the spike out of the reset")
Parameter = Float | Flag
TAU = Float("tau", 2.0, "membrane time constant, in time steps", Range(1, infinite=True), inverse="decay")
DECAY_INPUT = Flag("decay_input", True, "multiply the input by decay as well")

RESETS = ("hard", "soft")
FIRING: tuple[Parameter, ...] = (V_THRESHOLD, V_RESET, DETACH_RESET)
SOFT_FIRING: tuple[Parameter, ...] = (V_THRESHOLD, DETACH_RESET)

STRICT = Flag("strict", False, "spike above the threshold only, not at it, as in snnTorch and Norse")
DELAY_RESET = Flag(
    "delay_reset",
    False,
    "reset in the step after the spike, as in snnTorch: a hard reset before the charge, a soft one after it. The potential "
    "kept and returned is the one before the reset, which takes no gradient",
)
MAX_SPIKES = Float(
    "max_spikes",
    1.0,
    "most spikes in a step, as in Sinabs: one for each whole threshold in h; None: no limit",
    Range(1, integer=True),
    none=math.inf,
)
V_MIN = Float("v_min", None, "lowest potential after a step, as in Sinabs; None: no bound", none=-math.inf)
# What a neuron may do otherwise than its equations say, as other libraries do. General passes have them, so that they cost
# the others nothing.
CONVENTIONS: tuple[Parameter, ...] = (STRICT, DELAY_RESET, MAX_SPIKES, V_MIN)


class Neuron:
    """Base of all neurons: charge, fire, reset. A subclass states `charge`, or overrides `step` for several states."""

    name: ClassVar[str]
    """The key of the specification: lif_forward, csrc/generated/*/lif, snnkern.functional.lif."""
    module: ClassVar[str]
    """The name of the torch.nn.Module."""
    source: ClassVar[str]
    """The paper."""
    equations: ClassVar[tuple[str, ...]]
    """The charge, and all else that differs from the spike and reset below, as the docs print it."""
    firing_equations: ClassVar[tuple[str, ...]] = (
        "s = 1 if h >= v_threshold else 0",
        "v = v_reset if s else h   (hard reset)",
        "v = h - s * v_threshold   (soft reset, v_reset=None)",
    )
    """Spike and reset, as the docs print them."""
    states: ClassVar[tuple[State, ...]] = (POTENTIAL,)
    learned: ClassVar[tuple[Learned, ...]] = ()
    parameters: ClassVar[tuple[Parameter, ...]] = ()
    firing: ClassVar[tuple[Parameter, ...]] = FIRING
    """The parameters of spike and reset. Without v_reset every reset is soft; none at all: the neuron never spikes."""
    conventions: ClassVar[tuple[Parameter, ...]] = ()
    """Those of CONVENTIONS that the neuron has."""
    has_surrogate: ClassVar[bool] = True
    """Whether a surrogate stands for the derivative of the spike."""
    output: ClassVar[str] = "spike_seq"
    """The name of the first result."""

    @classmethod
    def all_parameters(cls) -> tuple[Parameter, ...]:
        """The neuron's own parameters, then those of firing and reset, in the order of the operator's schema."""
        return (*cls.parameters, *cls.firing)

    @classmethod
    def numbers(cls) -> tuple[Float, ...]:
        """All parameters that are numbers, those of the conventions last."""
        return tuple(p for p in (*cls.all_parameters(), *cls.conventions) if isinstance(p, Float))

    @classmethod
    def flags(cls) -> tuple[Flag, ...]:
        """All parameters that are switches, those of the conventions last."""
        return tuple(p for p in (*cls.all_parameters(), *cls.conventions) if isinstance(p, Flag))

    @classmethod
    def resets(cls) -> tuple[str, ...]:
        """The resets that the neuron can have."""
        return RESETS if any(p.name == "v_reset" for p in cls.firing) else ("soft",)

    @staticmethod
    def charge(x: Any, v: Any, p: Any) -> Any:
        """The potential h before firing, from the input x and the old potential v."""
        raise NotImplementedError

    @classmethod
    def step(cls, x: Any, states: Sequence[Any], p: Any, step: Step) -> tuple[Any, list[Any]]:
        """One time step: (x, old states) -> (spike, new states)."""
        v, owed = cls.delayed(states[0], p, step)
        s, v = cls.fire(cls.charge(x, v, p), p.v_threshold, p, step, owed)
        return s, [v]

    @classmethod
    def fire(cls, h: Any, threshold: Any, p: Any, step: Step, owed: Any = 0.0) -> tuple[Any, Any]:
        """The spike of the potential h, and the potential after it; `owed` is what a delayed reset takes from h."""
        if step.general:
            h = h - owed
        s = step.spike_at(h, threshold)
        if step.general:
            s = straight_through(spike_count(h, threshold, s, p), s)
        step.names.update({h: "h", s: "s"})
        v = cls.fire_reset(h, s, p, step, threshold)
        if step.general:
            v = where(p.delay_reset, h, v)
            v = where(v <= p.v_min, p.v_min, v)  # NaN stays NaN
        return s, v

    @staticmethod
    def delayed(v: Any, p: Any, step: Step) -> tuple[Any, Any]:
        """With delay_reset, the reset that the kept potential is due: the potential to charge, and what to take off then."""
        if not step.general:
            return v, 0.0
        s = spike_count(v, p.v_threshold, step.spike_at(v, p.v_threshold), p).detach()
        s = where(p.delay_reset, s, 0.0)
        if step.reset == "hard":
            return where(s > 0, p.v_reset, v), 0.0
        return v, step.taken(s, p.v_threshold)

    @staticmethod
    def fire_reset(h: Any, s: Any, p: Any, step: Step, threshold: Any = None) -> Any:
        """The potential after the spike s. A hard reset is a choice, so that an infinite h cannot become NaN."""
        s = where(p.detach_reset, s.detach(), s)
        if step.reset == "hard":
            return step.select(s, p.v_reset, h)
        return h - step.taken(s, p.v_threshold if threshold is None else threshold)


def spike_count(h: Any, threshold: Any, s: Any, p: Any) -> Any:
    """The number of spikes under the conventions, where s is 1 at the threshold and above; NaN does not spike."""
    one = where(p.strict, where(h > threshold, s, 0.0), s)
    held = h / threshold
    whole = where(p.strict, -(-held).floor() - 1, held.floor())
    many = where(whole >= 1, where(whole <= p.max_spikes, whole, p.max_spikes), 0.0)
    return where(p.max_spikes > 1, many, one)


def leak(x: Any, v: Any, p: Any) -> Any:
    """The potential after a leaky step."""
    return v + (x - (v - p.v_reset)) * p.decay


class IF(Neuron):
    """Integrate-and-fire neuron: the membrane adds up its input and forgets nothing."""

    name = "if"
    module = "IF"
    source = "Lapicque, 1907"
    equations = ("h = v + x",)
    conventions = CONVENTIONS

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
    conventions: ClassVar[tuple[Parameter, ...]] = CONVENTIONS

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


def fires(v_reset: float) -> tuple[Parameter, ...]:
    """FIRING with another default of v_reset."""
    return (V_THRESHOLD, replace(V_RESET, default=v_reset), DETACH_RESET)


V_C = Float("v_c", 0.8, "critical potential: above it the membrane rises by itself")
A0 = Float("a0", 1.0, "strength of the quadratic term")
V_REST = Float("v_rest", 0.0, "resting potential")
DELTA_T = Float("delta_T", 1.0, "sharpness of the exponential rise", POSITIVE)
THETA_RH = Float("theta_rh", 0.8, "rheobase threshold: where the exponential rise sets in")
RECOVERY: tuple[Parameter, ...] = (
    Float("w_rest", 0.0, "recovery current at the start"),
    Float(
        "tau_w", 2.0, "time constant of the recovery current, in time steps", Range(1, infinite=True), inverse="decay_w"
    ),
    Float("a", 0.0, "how much the recovery current follows the potential"),
    Float("b", 0.0, "what a spike adds to the recovery current"),
)


class Driven(Neuron):
    """Base of the neurons whose membrane drives itself, beside the input."""

    firing = fires(v_reset=-0.1)

    @staticmethod
    def drive(v: Any, p: Any) -> Any:
        """What drives the membrane beside the input."""
        raise NotImplementedError

    @classmethod
    def charge(cls, x: Any, v: Any, p: Any) -> Any:
        return v + (x + cls.drive(v, p)) * p.decay


class QIF(Driven):
    """Quadratic integrate-and-fire neuron: the leak is a parabola, so that above v_c the membrane rises by itself."""

    name = "qif"
    module = "QIF"
    source = "Ermentrout and Kopell, SIAM Journal on Applied Mathematics 46, 1986"
    equations = ("decay = 1 / tau", "h = v + (x + a0 * (v - v_rest) * (v - v_c)) * decay")
    parameters: ClassVar[tuple[Parameter, ...]] = (TAU, V_C, A0, V_REST)

    @staticmethod
    def drive(v: Any, p: Any) -> Any:
        return p.a0 * (v - p.v_rest) * (v - p.v_c)


class EIF(Driven):
    """Exponential integrate-and-fire neuron: near theta_rh the membrane begins to rise by itself, exponentially."""

    name = "eif"
    module = "EIF"
    source = "Fourcaud-Trocmé et al., Journal of Neuroscience 23, 2003"
    equations = (
        "decay = 1 / tau",
        "h = v + (x + v_rest - v + delta_T * exp((v - theta_rh) / delta_T)) * decay",
    )
    parameters = (TAU, DELTA_T, THETA_RH, V_REST)

    @staticmethod
    def drive(v: Any, p: Any) -> Any:
        # 1 / delta_T is the same at every step; the last bits of exp are free anyway.
        return p.v_rest - v + p.delta_T * ((v - p.theta_rh) * (1 / p.delta_T)).exp()


class Izhikevich(QIF):
    """Izhikevich's neuron: quadratic integrate-and-fire with a recovery current that every spike raises."""

    name = "izhikevich"
    module = "Izhikevich"
    source = "Izhikevich, IEEE Transactions on Neural Networks 14, 2003"
    equations = ("decay = 1 / tau", "h = v + (x + a0 * (v - v_rest) * (v - v_c) - w) * decay")
    firing_equations = (*Neuron.firing_equations, "w = w + (a * (h - v_rest) - w) / tau_w + b * s")
    states = (POTENTIAL, State("w", "recovery current", start="w_rest"))
    parameters = (TAU, V_C, A0, replace(V_REST, default=-0.1), *RECOVERY)
    firing = FIRING

    @classmethod
    def step(cls, x: Any, states: Sequence[Any], p: Any, step: Step) -> tuple[Any, list[Any]]:
        v, w = states
        h = v + (x + cls.drive(v, p) - w) * p.decay
        s, v = cls.fire(h, p.v_threshold, p, step)
        return s, [v, w + (p.a * (h - p.v_rest) - w) * p.decay_w + p.b * s]


class AdEx(Izhikevich):
    """Adaptive exponential integrate-and-fire neuron: with a recovery current that every spike raises."""

    name = "adex"
    module = "AdEx"
    source = "Brette and Gerstner, Journal of Neurophysiology 94, 2005"
    equations = (
        "decay = 1 / tau",
        "h = v + (x + v_rest - v + delta_T * exp((v - theta_rh) / delta_T) - w) * decay",
    )
    parameters = (*EIF.parameters, *RECOVERY)
    firing = EIF.firing

    drive = staticmethod(EIF.drive)


class Lapicque(Neuron):
    """Integrate-and-fire neuron as a circuit: a resistance and a capacitance in parallel."""

    name = "lapicque"
    module = "Lapicque"
    source = "Lapicque, Journal de Physiologie et de Pathologie Générale 9, 1907"
    equations = ("h = v + (resistance * x - (v - v_reset)) * dt / (resistance * capacitance)",)
    parameters = (
        Float("resistance", 1.0, "resistance of the membrane", POSITIVE),
        Float("capacitance", 2.0, "its capacitance; resistance * capacitance is the time constant", POSITIVE),
        Float("dt", 1.0, "length of a time step, in the unit of the time constant", POSITIVE),
    )
    conventions = CONVENTIONS

    @staticmethod
    def charge(x: Any, v: Any, p: Any) -> Any:
        return v + (p.resistance * x - (v - p.v_reset)) * (p.dt / (p.resistance * p.capacitance))


class CuBaLIF(Neuron):
    """Current-based leaky integrate-and-fire neuron: the input enters a current that decays, and that the membrane."""

    name = "cuba"
    module = "CuBaLIF"
    source = "Vogels and Abbott, Journal of Neuroscience 25, 2005"
    equations = ("i = alpha * i + x", "h = beta * v + i")
    states = (POTENTIAL, CURRENT)
    parameters = (
        Float("alpha", 0.9, "what stays of the current in a step", Range(0, 1)),
        Float("beta", 0.9, "what stays of the potential in a step", Range(0, 1)),
    )
    conventions = CONVENTIONS

    @classmethod
    def step(cls, x: Any, states: Sequence[Any], p: Any, step: Step) -> tuple[Any, list[Any]]:
        v, i = states
        i = p.alpha * i + x
        v, owed = cls.delayed(v, p, step)
        s, v = cls.fire(p.beta * v + i, p.v_threshold, p, step, owed)
        return s, [v, i]


class Alpha(Neuron):
    """Leaky integrate-and-fire neuron with a two-exponential synapse: its current rises, then falls."""

    name = "alpha"
    module = "Alpha"
    source = "Rall, Journal of Neurophysiology 30, 1967"
    equations = ("i = alpha * i + x", "j = rise * j + x", "h = beta * v + (i - j)")
    states = (POTENTIAL, CURRENT, State("j", "current that the rise takes away"))
    parameters = (
        Float("alpha", 0.9, "what stays of the current in a step", Range(0, 1)),
        Float("rise", 0.5, "what stays in a step of the current that the rise takes away; below alpha", Range(0, 1)),
        Float("beta", 0.9, "what stays of the potential in a step", Range(0, 1)),
    )

    @classmethod
    def step(cls, x: Any, states: Sequence[Any], p: Any, step: Step) -> tuple[Any, list[Any]]:
        v, i, j = states
        i, j = p.alpha * i + x, p.rise * j + x
        s, v = cls.fire(p.beta * v + (i - j), p.v_threshold, p, step)
        return s, [v, i, j]


class ALIF(Neuron):
    """Adaptive leaky integrate-and-fire neuron: every spike raises the threshold, which then falls back."""

    name = "alif"
    module = "ALIF"
    source = "Bellec et al., Long short-term memory and learning-to-learn in networks of spiking neurons, NeurIPS 2018"
    equations = (*LIF.equations[:2], "threshold = v_threshold + adapt * b")
    firing_equations = (
        "s = 1 if h >= threshold else 0",
        "v = v_reset if s else h   (hard reset)",
        "v = h - s * threshold     (soft reset, v_reset=None)",
        "b = rho * b + (1 - rho) * s",
    )
    states = (POTENTIAL, State("b", "adaptation of the threshold"))
    parameters = (
        TAU,
        Float("rho", 0.95, "what stays of the adaptation in a step", Range(0, 1)),
        Float("adapt", 1.8, "how much the adaptation raises the threshold"),
    )
    conventions = (STRICT, MAX_SPIKES, V_MIN)

    @classmethod
    def step(cls, x: Any, states: Sequence[Any], p: Any, step: Step) -> tuple[Any, list[Any]]:
        v, b = states
        s, v = cls.fire(leak(x, v, p), p.v_threshold + p.adapt * b, p, step)
        return s, [v, p.rho * b + (1 - p.rho) * s]


class RefractoryLIF(Neuron):
    """Leaky integrate-and-fire neuron that rests for some steps after a spike: its input is lost, and it cannot spike."""

    name = "refractory_lif"
    module = "RefractoryLIF"
    source = "Gerstner et al., Neuronal Dynamics, 2014, chapter 1.3"
    equations = (
        "decay = 1 / tau",
        "h = v if r > 0 else v + (x - (v - v_reset)) * decay",
    )
    firing_equations = (
        "s = 1 if r <= 0 and h >= v_threshold else 0",
        *Neuron.firing_equations[1:],
        "r = r - 1 if r > 0 else period * s",
    )
    states = (POTENTIAL, State("r", "steps of rest that are left"))
    parameters = (TAU, Float("period", 2.0, "steps of rest after a spike", Range(0, integer=True)))

    @classmethod
    def step(cls, x: Any, states: Sequence[Any], p: Any, step: Step) -> tuple[Any, list[Any]]:
        v, r = states
        resting = r > 0
        h = where(resting, v, leak(x, v, p))
        s = where(resting, 0.0, step.spike_at(h, p.v_threshold))
        step.names.update({h: "h", s: "s"})
        return s, [cls.fire_reset(h, s, p, step), where(resting, r - 1, p.period * s)]


class KLIF(LIF):
    """Leaky integrate-and-fire neuron whose potential is scaled by k and never negative."""

    name = "klif"
    module = "KLIF"
    source = "Jiang and Zhang, KLIF: An Optimized Spiking Neuron Unit for Tuning Surrogate Gradient Slope, 2023"
    equations = (
        "decay = 1 / tau",
        "h = relu(k * (v + (x - (v - v_reset)) * decay))",
        "h = relu(k * (v - (v - v_reset) * decay + x))   (decay_input=False)",
    )
    firing_equations = (
        *Neuron.firing_equations,
        "v = v_reset if s else h / k           (hard reset, scale_reset=True)",
        "v = (h - s * v_threshold) / k         (soft reset, scale_reset=True)",
    )
    parameters = (
        TAU,
        DECAY_INPUT,
        Float("k", 1.0, "scale of the potential", POSITIVE),
        Flag("scale_reset", False, "divide the potential by k again after the spike"),
    )
    conventions = ()

    @classmethod
    def step(cls, x: Any, states: Sequence[Any], p: Any, step: Step) -> tuple[Any, list[Any]]:
        (v,) = states
        scaled = p.k * cls.charge(x, v, p)
        h = where(scaled <= 0, 0.0, scaled)  # NaN stays NaN
        s = step.spike_at(h, p.v_threshold)
        step.names.update({h: "h", s: "s"})
        k = where(p.scale_reset, p.k, 1.0)
        if step.reset == "soft":
            return s, [cls.fire_reset(h, s, p, step) / k]
        return s, [cls.fire_reset(h / k, s, p, step)]


class CLIF(Neuron):
    """Complementary leaky integrate-and-fire neuron: a slow trace of its spikes deepens the reset, which is always soft."""

    name = "clif"
    module = "CLIF"
    source = "Huang et al., CLIF: Complementary Leaky Integrate-and-Fire Neuron for Spiking Neural Networks, ICML 2024"
    equations = ("decay = 1 / tau", "h = v - v * decay + x")
    firing_equations = (
        "s = 1 if h >= v_threshold else 0",
        "m = m * sigmoid(h * decay) + s",
        "v = h - s * (v_threshold + sigmoid(m))",
    )
    states = (POTENTIAL_FROM_0, State("m", "complementary potential"))
    parameters = (TAU,)
    firing = SOFT_FIRING

    @classmethod
    def step(cls, x: Any, states: Sequence[Any], p: Any, step: Step) -> tuple[Any, list[Any]]:
        v, m = states
        h = v - v * p.decay + x
        s = step.spike_at(h, p.v_threshold)
        step.names.update({h: "h", s: "s"})
        m = m * (h * p.decay).sigmoid() + s
        return s, [cls.fire_reset(h, s, p, step, p.v_threshold + m.sigmoid()), m]


class ILIF(Neuron):
    """Leaky integrate-and-fire neuron with integer spikes: s says how many thresholds the potential holds, up to a maximum."""

    name = "ilif"
    module = "ILIF"
    source = "Luo et al., Integer-Valued Training and Spike-Driven Inference Spiking Neural Network, ECCV 2024"
    equations = ("decay = 1 / tau", "h = (1 - decay) * v + x")
    firing_equations = (
        "s = round(clip(h / v_threshold, 0, max_spike_count))   (half to even)",
        "v = h - s * v_threshold",
        "ds/dh = 1 / v_threshold for 0 <= h / v_threshold <= max_spike_count, else 0",
    )
    states = (POTENTIAL_FROM_0,)
    parameters = (
        replace(TAU, default=4 / 3),
        Float("max_spike_count", 4.0, "most spikes in a step", Range(1, integer=True)),
    )
    firing = (replace(V_THRESHOLD, range=replace(POSITIVE, infinite=True)), DETACH_RESET)
    has_surrogate = False

    @classmethod
    def step(cls, x: Any, states: Sequence[Any], p: Any, step: Step) -> tuple[Any, list[Any]]:
        (v,) = states
        h = (1 - p.decay) * v + x
        u = h / p.v_threshold
        clipped = where(u >= 0, where(u <= p.max_spike_count, u, p.max_spike_count), 0.0)  # NaN does not spike
        s = straight_through(clipped.round(), clipped)
        step.names.update({h: "h", s: "s"})
        return s, [cls.fire_reset(h, s, p, step)]


class LI(Neuron):
    """Leaky integrator that never spikes: the readout of a network. Its output is the potential after each step."""

    name = "li"
    module = "LI"
    source = "Gerstner et al., Neuronal Dynamics, 2014, chapter 1.3"
    equations = ("decay = 1 / tau", "v = v + (x - v) * decay", "v = v - v * decay + x   (decay_input=False)")
    firing_equations = ()
    states = (POTENTIAL_FROM_0,)
    parameters = (TAU, DECAY_INPUT)
    firing = ()
    has_surrogate = False
    output = "v_seq"

    @classmethod
    def step(cls, x: Any, states: Sequence[Any], p: Any, step: Step) -> tuple[Any, list[Any]]:
        (v,) = states
        v = LIF.charge(x, v, p)
        return v, [v]


NEURONS: tuple[type[Neuron], ...] = (
    IF, LIF, ParametricLIF, QIF, EIF, Izhikevich, AdEx, ILIF, CuBaLIF, Alpha, ALIF, KLIF, CLIF, RefractoryLIF, Lapicque, LI,
)  # fmt: skip
