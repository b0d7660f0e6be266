"""The neurons: one class each, which states its parameters and its equations once.

From a class come the CUDA and CPU kernels, their back-propagation through time, the operator's schema and checks, the
reference in plain PyTorch and the tables in the docs. To add a neuron, add a class here and name it in NEURONS; what a class
may say is in base.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from ..graph.expr import straight_through, where
from .base import (
    CONVENTIONS,
    DETACH_RESET,
    FIRING,
    MAX_SPIKES,
    POSITIVE,
    POTENTIAL,
    STRICT,
    V_MIN,
    V_RESET,
    V_THRESHOLD,
    Flag,
    Float,
    Input,
    Learned,
    Neuron,
    Parameter,
    Range,
    State,
    Step,
)

# What a class needs, whoever writes it.
__all__ = [
    "CONVENTIONS",
    "DETACH_RESET",
    "FIRING",
    "NEURONS",
    "POTENTIAL",
    "V_RESET",
    "V_THRESHOLD",
    "Flag",
    "Float",
    "Input",
    "Learned",
    "Neuron",
    "Parameter",
    "Range",
    "State",
    "Step",
    "straight_through",
    "where",
]

POTENTIAL_FROM_0 = State("v", "membrane potential")
CURRENT = State("i", "synaptic current")
ABOVE_0 = replace(POSITIVE, infinite=True)
TAU = Float("tau", 2.0, "membrane time constant, in time steps", Range(1, infinite=True), inverse="decay")
DECAY_INPUT = Flag("decay_input", True, "multiply the input by decay as well")
SOFT_FIRING: tuple[Parameter, ...] = (V_THRESHOLD, DETACH_RESET)


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


ALPHA = Float("alpha", 0.9, "what stays of the current in a step", Range(0, 1))
BETA = Float("beta", 0.9, "what stays of the potential in a step", Range(0, 1))


class CuBaLIF(Neuron):
    """Current-based leaky integrate-and-fire neuron: the input enters a current that decays, and that the membrane."""

    name = "cuba"
    module = "CuBaLIF"
    source = "Vogels and Abbott, Journal of Neuroscience 25, 2005"
    equations = ("i = alpha * i + x", "h = beta * v + i")
    states = (POTENTIAL, CURRENT)
    parameters = (ALPHA, BETA)
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
        ALPHA,
        Float("rise", 0.5, "what stays in a step of the current that the rise takes away; below alpha", Range(0, 1)),
        BETA,
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


class AdLIF(Neuron):
    """Adaptive leaky integrate-and-fire neuron with an adaptation current: it follows the potential, and every spike raises it."""

    name = "adlif"
    module = "AdLIF"
    source = "Bittar and Garner, A surrogate gradient spiking baseline for speech command recognition, Frontiers in Neuroscience 16, 2022; recurrent, it is their RadLIF"
    equations = ("decay = 1 / tau", "h = v + (x - w - (v - v_reset)) * decay")
    firing_equations = (*Neuron.firing_equations, "w = rho * w + a * h + b * s")
    states = (POTENTIAL, State("w", "adaptation current"))
    parameters = (
        TAU,
        Float("rho", 0.95, "what stays of the adaptation in a step", Range(0, 1)),
        Float("a", 0.0, "how much the adaptation follows the potential"),
        Float("b", 1.0, "what a spike adds to the adaptation"),
    )
    conventions = (STRICT, MAX_SPIKES, V_MIN)

    @classmethod
    def step(cls, x: Any, states: Sequence[Any], p: Any, step: Step) -> tuple[Any, list[Any]]:
        v, w = states
        h = leak(x - w, v, p)
        s, v = cls.fire(h, p.v_threshold, p, step)
        return s, [v, p.rho * w + p.a * h + p.b * s]


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
    firing = (replace(V_THRESHOLD, range=ABOVE_0), DETACH_RESET)
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


class TernaryLIF(LIF):
    """Leaky integrate-and-fire neuron with ternary spikes: 1 at the threshold, -1 at another one below 0."""

    name = "ternary_lif"
    module = "TernaryLIF"
    source = "Guo et al., Ternary Spike: Learning Ternary Spikes for Spiking Neural Networks, AAAI 2024"
    firing_equations = (
        "s = 1 if h >= v_threshold else -1 if h <= -v_threshold_neg else 0",
        "v = v_reset if s else h   (hard reset)",
        "v = h - s * v_threshold if s >= 0 else h - s * v_threshold_neg   (soft reset, v_reset=None)",
    )
    parameters = (
        *LIF.parameters,
        Float("v_threshold_neg", 1.0, "how far below 0 the potential gives a spike of -1", ABOVE_0),
    )
    firing = (replace(V_THRESHOLD, range=ABOVE_0), V_RESET, DETACH_RESET)
    conventions = ()

    @classmethod
    def step(cls, x: Any, states: Sequence[Any], p: Any, step: Step) -> tuple[Any, list[Any]]:
        (v,) = states
        h = cls.charge(x, v, p)
        up, down = step.spike_at(h, p.v_threshold), step.spike_at(-h, p.v_threshold_neg)
        s = up - down
        step.names.update({h: "h", s: "s"})
        # The two never spike at once, so that their resets may come one after the other.
        v = cls.fire_reset(h, up, p, step)
        return s, [cls.fire_reset(v, down, p, step, -step.finite(p.v_threshold_neg))]


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


class CuBaLI(Neuron):
    """Current-based leaky integrator that never spikes: the input enters a current that decays, and that the potential."""

    name = "cuba_li"
    module = "CuBaLI"
    source = "Gerstner et al., Neuronal Dynamics, 2014, chapter 1.3; Norse"
    equations = ("i = alpha * i + x", "v = beta * v + i")
    firing_equations = ()
    states = (POTENTIAL_FROM_0, CURRENT)
    parameters = (ALPHA, BETA)
    firing = ()
    has_surrogate = False
    output = "v_seq"

    @classmethod
    def step(cls, x: Any, states: Sequence[Any], p: Any, step: Step) -> tuple[Any, list[Any]]:
        v, i = states
        i = p.alpha * i + x
        v = p.beta * v + i
        return v, [v, i]


NEURONS: tuple[type[Neuron], ...] = (
    IF, LIF, ParametricLIF, QIF, EIF, Izhikevich, AdEx, ILIF, CuBaLIF, Alpha, ALIF, AdLIF, KLIF, CLIF, RefractoryLIF, Lapicque, LI,
    CuBaLI, TernaryLIF,
)  # fmt: skip
