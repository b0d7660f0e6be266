"""What a neuron and a surrogate are: their base classes, and the words in which a class states what it has.

The catalogues are neurons.py and surrogates.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
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
        if not -math.inf < value < math.inf or (self.integer and value != math.floor(value)):
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
class Input:
    """An input beside x that a neuron cannot do without: a tensor with a value for each step, and a gradient for each.

    It broadcasts against x_seq; one without time, against x_seq[0], is the same in every step.
    """

    name: str
    doc: str
    range: Range = FINITE


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


@dataclass(frozen=True)
class Step:
    """What tracing or the reference supplies to the equations of one step; `reset` is hard or soft."""

    spike: Any  # u -> s, with the surrogate gradient as derivative; equations call `spike_at`
    select: Any  # (s, a, b) -> a where s, else b; in smooth mode `blend`
    reset: str
    general: bool = False  # the neuron's conventions are in play; else they are at their defaults, and p has none
    infinity: Any = None  # where a threshold may be it: the neuron then never spikes, and no gradient passes a spike
    names: dict[Any, str] = field(default_factory=dict)  # the tracer's names for h and s in generated code

    def spike_at(self, h: Any, threshold: Any) -> Any:
        """The spike of the potential h."""
        s = self.spike(h - threshold)
        return s if self.infinity is None else where(threshold < self.infinity, s, 0.0)

    def taken(self, s: Any, threshold: Any) -> Any:
        """What a soft reset takes off after the spike s."""
        return s * self.finite(threshold)

    def finite(self, threshold: Any) -> Any:
        """The threshold as a factor of the spike: an infinite one, which has none, is 0, since 0 * infinity would be NaN."""
        return threshold if self.infinity is None else where(threshold < self.infinity, threshold, 0.0)


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
DETACH_RECURRENT = Flag(
    "detach_recurrent",
    False,
    "keep the gradient out of the spikes that are fed back; weight_hh and bias_hh still learn",
)
Parameter = Float | Flag

RESETS = ("hard", "soft")
FIRING: tuple[Parameter, ...] = (V_THRESHOLD, V_RESET, DETACH_RESET)

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
MAX_SURROGATE_PARAMETERS = 4
# The surrogate's parameters one by one as tensors, in place of surrogate_params. 0-dim, since torch.compile lets only such
# tensors lie on the CPU while others are on a GPU.
SURROGATE_TENSORS = tuple(f"surrogate_param{i}_tensor" for i in range(MAX_SURROGATE_PARAMETERS))


class Neuron:
    """Base of all neurons: charge, fire, reset. A subclass states `charge`, or overrides `step` for several states."""

    name: ClassVar[str]
    """The key of the specification: lif_forward, csrc/generated/*/lif, snnkern.functional.lif."""
    module: ClassVar[str]
    """The name of the torch.nn.Module."""
    source: ClassVar[str] = ""
    """The paper."""
    equations: ClassVar[tuple[str, ...]] = ()
    """The charge, and all else that differs from the spike and reset below, as the docs print it."""
    firing_equations: ClassVar[tuple[str, ...]] = (
        "s = 1 if h >= v_threshold else 0",
        "v = v_reset if s else h   (hard reset)",
        "v = h - s * v_threshold   (soft reset, v_reset=None)",
    )
    """Spike and reset, as the docs print them."""
    states: ClassVar[tuple[State, ...]] = (POTENTIAL,)
    inputs: ClassVar[tuple[Input, ...]] = ()
    """Those beside x. The module takes them with each call, as the function does."""
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
    def key(cls) -> str:
        """What the names of its operators start with: its name, unless the class was defined at run time."""
        return str(vars(cls).get("operator_key", cls.name))  # a class does not inherit it

    @classmethod
    def all_parameters(cls) -> tuple[Parameter, ...]:
        """The neuron's own parameters, then those of firing and reset, in the order of the operator's schema."""
        return (*cls.parameters, *cls.firing)

    @classmethod
    def required(cls) -> tuple[Input | Learned, ...]:
        """What is a tensor always, in the order of the operator's schema."""
        return (*cls.inputs, *cls.learned)

    @classmethod
    def numbers(cls) -> tuple[Float, ...]:
        """All parameters that are numbers, those of the conventions last."""
        return tuple(p for p in (*cls.all_parameters(), *cls.conventions) if isinstance(p, Float))

    @classmethod
    def flags(cls) -> tuple[Flag, ...]:
        """All parameters that are switches, those of the conventions last."""
        return tuple(p for p in (*cls.all_parameters(), *cls.conventions) if isinstance(p, Flag))

    @classmethod
    def spikes(cls) -> bool:
        """Whether it ever does; what never spikes has nothing to feed back."""
        return bool(cls.firing)

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
            if p.v_min is not None:  # the neuron has this convention
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


class Surrogate:
    """Base of all surrogates."""

    name: ClassVar[str]
    gradient_text: ClassVar[str] = ""
    primitive_text: ClassVar[str] = ""
    parameters: ClassVar[tuple[Float, ...]] = ()
    source: ClassVar[str] = ""

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        raise NotImplementedError

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def key(cls) -> str:
        """What operators call it: its name, unless the class was defined at run time."""
        return str(vars(cls).get("operator_key", cls.name))  # a class does not inherit it

    @classmethod
    def has_primitive(cls) -> bool:
        return cls.primitive is not Surrogate.primitive
