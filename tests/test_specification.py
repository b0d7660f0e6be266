"""A class that is no neuron or surrogate is refused in Python: the error names the class, what was expected and what came."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from snnkern import nn
from snnkern.codegen.emit.step import neuron_header, surrogate_header
from snnkern.codegen.specification.check import LIMITS, MODULE_ATTRIBUTES, check_catalogue
from snnkern.codegen.specification.neurons import (
    CONVENTIONS,
    DETACH_RESET,
    NEURONS,
    STRICT,
    TAU,
    V_RESET,
    V_THRESHOLD,
    Flag,
    Float,
    Learned,
    Neuron,
    Range,
    State,
)
from snnkern.codegen.specification.surrogates import SURROGATES, Surrogate

KEEP = Float("keep", 0.5, "what stays", Range(0, 1))
V = State("v", "potential")


class Toy(Neuron):
    """A neuron with one parameter."""

    name = "toy"
    module = "Toy"
    source = "none"
    equations = ("h = v * keep + x",)
    parameters = (KEEP,)

    @staticmethod
    def charge(x: Any, v: Any, p: Any) -> Any:
        return v * p.keep + x


class Quiet(Toy):
    """The same, which never spikes."""

    firing_equations = ()
    states = (V,)
    firing = ()
    has_surrogate = False
    output = "v_seq"

    @classmethod
    def step(cls, x: Any, states: Any, p: Any, step: Any) -> Any:
        v = cls.charge(x, *states, p)
        return v, [v]


def made(base: type, **attributes: Any) -> type:
    """A class Made with other attributes; a plain function is a static method."""
    wrapped = {key: staticmethod(value) if callable(value) else value for key, value in attributes.items()}
    return type("Made", (base,), {"__doc__": base.__doc__, **wrapped})


def message(what: type) -> str:
    with pytest.raises(ValueError) as raised:
        (neuron_header if issubclass(what, Neuron) else surrogate_header)(what)
    text = str(raised.value)
    assert text.startswith("Made: ")
    return text.removeprefix("Made: ")


def test_what_is_right_passes() -> None:
    for neuron in (Toy, Quiet):
        assert f"struct {neuron.module}Soft" in neuron_header(neuron)


# ---- equations --------------------------------------------------------------------------------------------------------


def _branches(x: Any, v: Any, p: Any) -> Any:
    return v * p.keep if v > 0 else x


def _and(x: Any, v: Any, p: Any) -> Any:
    return x * (v > 0 and p.keep)


def _or(x: Any, v: Any, p: Any) -> Any:
    return x * (v > 0 or p.keep)


def _not(x: Any, v: Any, p: Any) -> Any:
    return x * (not v) * p.keep


EQUATIONS: dict[str, tuple[Any, str]] = {
    "==": (lambda x, v, p: x if v == 0 else v * p.keep, "cannot ask whether a traced value equals another: .* use <= or >="),
    "!=": (lambda x, v, p: x * (v != p.keep), "cannot ask whether a traced value equals another"),
    "0 ==": (lambda x, v, p: x if v == 0 else v * p.keep, "cannot ask whether a traced value equals another"),
    "in": (lambda x, v, p: x if v in (1.0, p.keep) else v, "cannot ask whether a traced value equals another"),
    "if": (_branches, "cannot branch in Python on a traced value: use where"),
    "and": (_and, "cannot branch in Python on a traced value: use where"),
    "or": (_or, "cannot branch in Python on a traced value: use where"),
    "not": (_not, "cannot branch in Python on a traced value: use where"),
    "chain": (lambda x, v, p: x * (0 < v < p.keep), "cannot branch in Python on a traced value: use where"),
    "max": (lambda x, v, p: max(x, v * p.keep), "cannot branch in Python on a traced value: use where"),
    "parameter": (lambda x, v, p: v * p.kepe + x, "p.kepe is no parameter; there are: detach_reset, keep, v_reset, v_threshold"),
    "method": (lambda x, v, p: (v * p.keep).sinh() + x, "the method 'sinh', which the generator does not know; it knows .* tanh"),
    "infinity": (lambda x, v, p: v * p.keep + math.inf, "a number in an equation must be finite, got inf"),
    "nan": (lambda x, v, p: v * p.keep + x * math.nan, "a number in an equation must be finite, got nan"),
    "None": (lambda x, v, p: v * p.keep + None, "an equation takes numbers and traced values, got None"),
    "tensor": (lambda x, v, p: torch.exp(v) * p.keep + x, r"exp\(\): argument 'input'"),
    "condition": (lambda x, v, p: v * p.keep + x * (v > 0), r"a condition, >\(.*\), is no number: write where"),
    "flag": (lambda x, v, p: v * p.keep + x * p.detach_reset, r"a condition, p.detach_reset, is no number: write where"),
    "two arguments": (lambda x, v: v + x, "takes 2 positional arguments but 3 were given"),
}  # fmt: skip


@pytest.mark.parametrize("key", EQUATIONS)
def test_what_an_equation_may_not_say(key: str) -> None:
    charge, expected = EQUATIONS[key]
    assert re.search(expected, message(made(Toy, charge=charge)))


def test_a_condition_must_be_one() -> None:
    from snnkern.codegen.graph.expr import where

    found = message(made(Toy, charge=lambda x, v, p: where(v * p.keep, x, v)))
    assert found == "where needs a comparison or a flag to choose by, got *(v, p.keep)"


def test_an_error_names_the_line_of_the_equation() -> None:
    found = message(made(Toy, charge=_branches))
    line = _branches.__code__.co_firstlineno + 1
    assert f"in line {line} of {__file__}: return v * p.keep if v > 0 else x" in found
    assert Path(__file__).read_text().splitlines()[line - 1].strip() == found.partition("test_specification.py: ")[2]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (
            lambda x, states, p, step: None,
            r"a step must return the output and a list of the new states \(v\), got None",
        ),
        (lambda x, states, p, step: x, r"a list of the new states \(v\), got x"),
        (lambda x, states, p, step: (x, p.keep), r"a list of the new states \(v\), got \(x, p.keep\)"),
        (lambda x, states, p, step: (x, []), r"a list of the new states \(v\), got 0 states"),
        (lambda x, states, p, step: (x, [x, p.keep]), r"a list of the new states \(v\), got 2 states"),
        (lambda x, states, p, step: (x, states, p.keep), "a step must return the output and a list"),
        (lambda x, states, p, step: (x, [None]), "the new state v must be a number or an expression, got None"),
        (lambda x, states, p, step: ("x", states), "the output of a step must be a number or an expression, got 'x'"),
        (lambda x, states, p, step: (x > 0, states), "a condition, .*, is no number"),
    ],
)
def test_what_a_step_must_return(step: Any, expected: str) -> None:
    assert re.search(expected, message(made(Quiet, step=step)))


def test_a_number_is_a_value_too() -> None:
    """A state may be set to a number."""
    assert "state[0] = R(0.0);" in neuron_header(made(Quiet, step=lambda x, states, p, step: (x * p.keep, [0.0])))


def test_what_is_declared_is_used() -> None:
    assert (
        message(made(Toy, charge=lambda x, v, p: v + x)) == "its equations do not use keep: leave out what does nothing"
    )
    found = message(made(Quiet, step=lambda x, states, p, step: (step.spike(x) * p.keep, states)))
    assert found == "its step asks for step.spike, and it has no surrogate"
    found = message(made(Toy, step=lambda x, states, p, step: (x * p.keep, states)))
    assert found == "its step never asks for step.spike: has_surrogate = False says so"
    # A state may start at a parameter that the step does not use.
    assert neuron_header(
        made(Quiet, parameters=(KEEP, Float("rest", 0.0, "start")), states=(State("v", "potential", "rest"),))
    )


# ---- declarations -----------------------------------------------------------------------------------------------------


def numbers(count: int) -> tuple[Float, ...]:
    return tuple(Float(f"k{i}", 0.5, "a number") for i in range(count))


DECLARED: dict[str, tuple[type, dict[str, Any], str]] = {
    "no name": (Toy, {"name": ""}, "name must be a text, got ''"),
    "text": (Toy, {"equations": ("h = v")}, r"equations must be a tuple of str, got 'h = v'; a tuple of one ends with a comma: \(a,\)"),
    "parameter": (Toy, {"parameters": KEEP}, r"parameters must be a tuple of Float or Flag, got Float\(.*; a tuple of one ends"),
    "parameters": (Toy, {"parameters": ("keep",)}, "parameters must be a tuple of Float or Flag, and holds 'keep'"),
    "docstring": (Toy, {"__doc__": ""}, "it must have a docstring"),
    "no state": (Quiet, {"states": ()}, "states must have one state at least, got none"),
    "states": (Quiet, {"states": tuple(State(f"v{i}", "a state") for i in range(9))}, "the kernels have room for 8 states, got 9"),
    "numbers": (Quiet, {"parameters": numbers(25)}, "the kernels have room for 24 numbers, got 25"),
    "flags": (Quiet, {"parameters": tuple(Flag(f"k{i}", True, "a flag") for i in range(9))}, "the kernels have room for 8 flags, got 9"),
    "default": (Toy, {"parameters": (replace(KEEP, default=1.5),)}, "the default of keep must be a finite number >= 0 and <= 1, got 1.5"),
    "integer": (Toy, {"parameters": (replace(KEEP, range=Range(0, integer=True)),)}, "the default of keep must be an integer >= 0, got 0.5"),
    "None": (Toy, {"parameters": (replace(KEEP, default=None),)}, "the default of keep must be .*, got None"),
    "True": (Toy, {"parameters": (replace(KEEP, default=True),)}, "the default of keep must be .*, got True"),
    "empty range": (Toy, {"parameters": (replace(KEEP, range=Range(1, 0)),)}, "the range of keep holds nothing"),
    "flag": (Quiet, {"parameters": (KEEP, Flag("on", 1, "a flag"))}, "the default of on must be True or False, got 1"),
    "inverse": (Toy, {"parameters": (Float("tau", 2.0, "t", Range(0), "keep"),)}, "get 1 / tau, so its range must be of numbers > 0, got a finite number >= 0"),
    "learned": (
        Quiet,
        {"learned": (Learned("keep", "k", Range(0, 1), Float("init", 0.5, "start"), "w"),), "parameters": ()},
        "keep starts at 1 / init and must be a finite number >= 0 and <= 1, got 1 / 0.5",
    ),
    "start": (Quiet, {"states": (State("v", "potential", "v_reset"),)}, "the state v starts at 'v_reset', which is no number of it; there are: 0, keep"),
    "start at inverse": (
        Quiet, {"states": (State("v", "potential", "tau"),), "parameters": (TAU,)}, "the state v cannot start at tau: the kernels get decay = 1 / tau",
    ),
    "firing": (Toy, {"firing": (V_RESET, DETACH_RESET)}, r"firing must be \(\), or v_threshold, perhaps v_reset, perhaps detach_reset, got v_reset, detach_reset"),
    "order": (Toy, {"firing": (V_THRESHOLD, DETACH_RESET, V_RESET)}, "firing must be .*, got v_threshold, detach_reset, v_reset"),
    "in firing": (Toy, {"firing": (V_THRESHOLD, KEEP, DETACH_RESET)}, "firing may hold v_threshold, v_reset, detach_reset, .*, got keep: make it one of parameters"),
    "plain reset": (Toy, {"firing": (V_THRESHOLD, Float("v_reset", 0.0, "reset"), DETACH_RESET)}, "firing may hold .*, as V_THRESHOLD and so on, got v_reset"),
    "in parameters": (Toy, {"parameters": (KEEP, V_RESET)}, "v_reset belongs into firing, not into parameters"),
    "convention": (Toy, {"parameters": (KEEP, STRICT)}, "strict belongs into conventions, not into parameters"),
    "no firing": (Toy, {"firing": ()}, "a neuron without firing never spikes: it must have has_surrogate = False"),
    "conventions": (Toy, {"conventions": (KEEP,)}, "conventions may hold strict, delay_reset, max_spikes, v_min, got keep"),
    "quiet conventions": (Quiet, {"conventions": CONVENTIONS}, "conventions are about spikes with a surrogate, which it has not, got strict"),
}  # fmt: skip


@pytest.mark.parametrize("key", DECLARED)
def test_what_may_not_be_declared(key: str) -> None:
    base, attributes, expected = DECLARED[key]
    assert re.search(expected, message(made(base, **attributes)))


def test_one_convention_is_enough() -> None:
    assert "ToyGeneralParams" in neuron_header(made(Toy, conventions=(STRICT,)))


def test_as_many_as_the_kernels_hold() -> None:
    most = LIMITS["kMaxParams"]
    states = tuple(State(f"u{i}", "a state") for i in range(LIMITS["kMaxStates"]))
    flags = tuple(Flag(f"f{i}", True, "a flag") for i in range(LIMITS["kMaxFlags"]))

    def step(x: Any, states: Any, p: Any, step: Any) -> Any:
        from snnkern.codegen.graph.expr import where

        for i in range(most):
            x = x * getattr(p, f"k{i}")
        for flag in flags:
            x = where(getattr(p, flag.name), x, x * 2)
        return x, [x + s for s in states]

    header = neuron_header(made(Quiet, states=states, parameters=(*numbers(most), *flags), step=step))
    assert f"kStates = {len(states)}" in header and f"kCount = {most}" in header


# ---- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "two words", "", "1st", "größe", "_hidden", "a__b",  # no names
    "float", "register", "template", "xor", "INFINITY",  # C++
    "lambda", "None", "class", "yield",  # Python
    "R", "value", "load", "kCount", "self", "torch", "isinstance", "train", "half", "reset",  # in the generated code
    "x_seq", "v_init", "surrogate", "surrogate_params", "surrogate_param0_tensor", "store_v_seq", "spiking", "channels", "keep_tensor", "learn_keep",
    "v", "keep", "v_seq", "keep_weight",  # taken by the neuron itself
])  # fmt: skip
def test_a_parameter_needs_a_name_of_its_own(name: str) -> None:
    found = message(made(Quiet, parameters=(KEEP, Float(name, 0.5, "another"))))
    assert repr(name) in found and ("cannot be a name" in found or "would be the name of two things" in found)


@pytest.mark.parametrize("name", ["h", "s", "x", "gs", "t0", "m12", "state", "question", "choose", "double", "keep", "v", "g_v", "v_seq", "train"])  # fmt: skip
def test_a_state_needs_a_name_of_its_own(name: str) -> None:
    states = (V, State(name, "another"))
    found = message(made(Quiet, states=states, step=lambda x, states, p, step: (x * p.keep, states)))
    assert repr(name) in found and ("cannot be a name" in found or "would be the name of two things" in found)


@pytest.mark.parametrize("name", ["weight_hh", "bias_hh", "detach_recurrent", "size", "diagonal", "spike"])
def test_a_recurrent_layer_has_names_of_its_own(name: str) -> None:
    of_spiking = message(made(Toy, parameters=(*Toy.parameters, Float(name, 0.5, "another"))))
    assert f"{name!r} would be the name of two things" in of_spiking
    assert "name of two things" not in message(made(Quiet, parameters=(KEEP, Float(name, 0.5, "another"))))


def test_names_of_modules_are_known() -> None:
    """The list stands in the generator, which imports no torch."""
    ours = {name for name in dir(nn.LIF()) if not name.startswith("_")}
    own = {p.name for p in NEURONS[1].all_parameters() if isinstance(p, (Float, Flag))}
    assert {name for name in dir(torch.nn.Module()) if not name.startswith("_")} <= MODULE_ATTRIBUTES
    assert {"reset", "detach"} <= ours & MODULE_ATTRIBUTES and not own & MODULE_ATTRIBUTES


def test_no_two_have_one_name() -> None:
    with pytest.raises(ValueError, match="Made: 'lif' is the name of LIF: choose another"):
        check_catalogue((*NEURONS, made(Toy, name="lif")))
    with pytest.raises(ValueError, match="Made: 'atan' is the name of ATan: choose another"):
        check_catalogue((*SURROGATES, made(Slope, name="atan")))


# ---- surrogates -------------------------------------------------------------------------------------------------------


class Slope(Surrogate):
    """A surrogate with a primitive."""

    name = "slope"
    gradient_text = "a x"
    primitive_text = "a x^2 / 2"
    parameters = (Float("a", 1.0, "slope", Range(0)),)

    @staticmethod
    def gradient(x: Any, p: Any) -> Any:
        return p.a * x

    @staticmethod
    def primitive(x: Any, p: Any) -> Any:
        return p.a * x * x * 0.5


SLOPES: dict[str, tuple[dict[str, Any], str]] = {
    "no gradient": ({"gradient": Surrogate.gradient}, r"it must have a gradient\(x, p\)"),
    "no text": ({"primitive_text": ""}, r"both primitive\(x, p\) and primitive_text, or neither"),
    "default": ({"parameters": (Float("a", -1.0, "slope", Range(0)),)}, "the default of a must be a finite number >= 0, got -1.0"),
    "None": ({"parameters": (Float("a", None, "slope", none=1.0),)}, "a: a parameter of a surrogate is a plain number"),
    "many": ({"parameters": numbers(5)}, "the kernels have room for 4 parameters, got 5"),
    "name": ({"parameters": (Float("x", 1.0, "slope"),)}, "'x' cannot be a name"),
    "attribute": ({"parameters": (Float("spiking", 1.0, "slope"),)}, "'spiking' cannot be a name"),
    "keyword": ({"parameters": (Float("double", 1.0, "slope"),)}, "'double' cannot be a name"),
    "unknown": ({"gradient": lambda x, p: p.b * x}, "p.b is no parameter; there are: a, in line"),
    "unused": ({"gradient": lambda x, p: x, "primitive": lambda x, p: x * x * 0.5}, "its equations do not use a"),
    "equals": ({"gradient": lambda x, p: p.a if x == 0 else x}, "cannot ask whether a traced value equals another"),
    "nothing": ({"gradient": lambda x, p: None}, "the gradient must be a number or an expression, got None"),
    "condition": ({"gradient": lambda x, p: x > p.a}, "a condition, .*, is no number"),
    "primitive": (
        {"primitive": lambda x, p: p.a * x * x},
        r"the gradient must be the derivative of the primitive: at x = -2.719 it is -2.719, and the derivative -5.438",
    ),
}  # fmt: skip


@pytest.mark.parametrize("key", SLOPES)
def test_what_a_surrogate_may_not_be(key: str) -> None:
    attributes, expected = SLOPES[key]
    assert re.search(expected, message(made(Slope, **attributes)))


def test_a_surrogate_that_is_right_passes() -> None:
    assert "struct Slope" in surrogate_header(Slope)
    assert surrogate_header(made(Slope, gradient=lambda x, p: 1.0 + p.a * 0, primitive=lambda x, p: x + p.a))
