"""The formulas in the docs are true: read as text, they compute what the equations compute; and all of them become LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from snnkern.codegen.emit_docs import pages
from snnkern.codegen.emit_python import step_equations
from snnkern.codegen.formula import Node, latex, latex_step, read, read_equation
from snnkern.codegen.neurons import NEURONS, RESETS, Float, Step
from snnkern.codegen.surrogates import SURROGATES, Surrogate

from support import NEURON_NAMES, SURROGATE_CLASSES, flag_settings, neuron_class

OPERATIONS: dict[str, Callable[..., float]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, " ": lambda a, b: a * b,
    "/": lambda a, b: a / b, "^": lambda a, b: a**b, "neg": lambda a: -a, "=": lambda a, b: a == b,
    "==": lambda a, b: a == b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., float]] = {
    "sin": math.sin, "cos": math.cos, "tan": math.tan, "tanh": math.tanh, "exp": math.exp, "ln": math.log,
    "log": math.log, "atan": math.atan, "erf": math.erf, "erfc": math.erfc, "sqrt": math.sqrt, "abs": abs,
    "floor": math.floor, "round": round, "min": min, "max": max, "H": lambda x: x >= 0, "L": lambda x: 1 / (1 + math.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)), "relu": lambda x: max(x, 0.0), "sgn": lambda x: math.copysign(1, x),
    "clip": lambda x, low, high: min(max(x, low), high), "clamp": lambda x, low, high: min(max(x, low), high),
    "N": lambda x, m, s: math.exp(-((x - m) ** 2) / (2 * s * s)) / (s * math.sqrt(2 * math.pi)),
}  # fmt: skip


def compute(node: Node, scope: dict[str, float]) -> float:
    """The number that a formula stands for."""
    if node.op == "number":
        return float(node.text)
    if node.op == "name":
        return scope[node.text]
    if node.op == "if":
        return compute(node.args[1] if compute(node.args[0], scope) else node.args[2], scope)
    if node.op == "sum":
        index, first, last, term = node.args
        steps = range(int(compute(first, scope)), int(compute(last, scope)) + 1)
        return sum(compute(term, {**scope, index.text: float(i)}) for i in steps)
    values = [compute(a, scope) for a in node.args]
    return float((FUNCTIONS[node.text] if node.op == "call" else OPERATIONS[node.op])(*values))


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", NEURON_NAMES)
def test_the_equations_of_a_neuron_are_what_it_computes(name: str, reset: str) -> None:
    neuron = neuron_class(name)
    generator = torch.Generator().manual_seed(0)
    for flags in flag_settings(name):
        for _ in range(20):  # enough for steps with and without a spike
            scope = {"e": math.e, "pi": math.pi, **{key: float(value) for key, value in flags.items()}}
            for i, p in enumerate(q for q in neuron.all_parameters() if isinstance(q, Float)):
                scope[p.name] = p.default + 0.1 * (i + 1)
            if reset == "soft":
                scope["v_reset"] = 0.0
            for t in neuron.learned:
                scope[t.weight] = float(torch.randn((), generator=generator))
            for variable in ("x", *(s.name for s in neuron.states)):
                scope[variable] = float(torch.randn((), generator=generator, dtype=torch.float64) * 2)

            p = SimpleNamespace(**flags)
            for q in neuron.all_parameters():
                if isinstance(q, Float):
                    value = 1 / scope[q.name] if q.inverse else scope[q.name]
                    setattr(p, q.symbol, torch.tensor(value, dtype=torch.float64))
            for t in neuron.learned:
                setattr(p, t.name, torch.tensor(scope[t.weight], dtype=torch.float64).sigmoid())
            step = Step(lambda u: (u >= 0).to(u.dtype), lambda s, a, b: torch.where(s != 0, a, b), reset)
            old = [torch.tensor(scope[s.name], dtype=torch.float64) for s in neuron.states]
            spike, new = neuron.step(torch.tensor(scope["x"], dtype=torch.float64), old, p, step)

            before = dict(scope)
            for line in step_equations(neuron):
                equation = read_equation(line)
                if _applies(equation.note, flags, reset):
                    # An alternative to the line before starts from the same old state.
                    old_state = {key: before[key] for key in (equation.target,) if key in before}
                    scope[equation.target] = compute(equation.formula, {**scope, **old_state})
            for s, expected in zip(neuron.states, new, strict=True):
                assert scope[s.name] == pytest.approx(float(expected), rel=1e-9, abs=1e-9), s.name
            if "s" in scope:
                assert scope["s"] == float(spike)


def _applies(note: str, flags: dict[str, bool], reset: str) -> bool:
    """Whether a line with this note holds for these settings: 'decay_input=False', or 'hard reset'."""
    settings = dict(re.findall(r"(\w+)=(\w+)", note))
    named = [str(flags[key]) == value for key, value in settings.items() if key in flags]
    return all(named) and all(f"{other} reset" not in note for other in RESETS if other != reset)


def _parameters(surrogate: type[Surrogate]) -> list[dict[str, float]]:
    """The default parameters, and others."""
    others = {p.name: p.default + 1 if p.range.integer else p.default * 1.3 + 0.1 for p in surrogate.parameters}
    return [{p.name: p.default for p in surrogate.parameters}, others]


@pytest.mark.parametrize("name", SURROGATE_CLASSES)
def test_the_formulas_of_a_surrogate_are_what_it_computes(name: str) -> None:
    cls = SURROGATE_CLASSES[name]
    equations = cls.equations
    x = torch.linspace(-3.03, 3.05, 40, dtype=torch.float64)
    for parameters in _parameters(equations):
        chosen = cls(
            **{p.name: int(v) if p.range.integer else v for p in equations.parameters for v in [parameters[p.name]]}
        )
        formulas = [(equations.gradient_text, chosen.gradient)]
        if equations.has_primitive():
            formulas.append((equations.primitive_text, chosen.primitive))
        for text, function in formulas:
            found = [compute(read(text), {"e": math.e, "pi": math.pi, "x": float(a), **parameters}) for a in x]
            torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), function(x), rtol=1e-9, atol=1e-9)


def test_every_neuron_and_surrogate_has_its_place() -> None:
    made = pages()
    for n in NEURONS:
        page = made[f"neurons/{n.name}.md"]
        shown = [n.source, f"snnkern.nn.{n.module}`", f"{n.name}.svg", *(s.doc for s in n.states)]
        assert all(text in page for text in (*shown, *(p.doc for p in n.all_parameters())))
        assert n.name in made["neurons/index.md"]
    for s in SURROGATES:
        section = made["surrogates.md"].split(f"\n## {s.__name__}\n")[1].split("\n## ")[0]
        assert all(text in section for text in (s.name, s.source, *(p.doc for p in s.parameters)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tau_w v_reset / (a0 + 1)", r"\frac{\tau_{w}\,v_{\mathrm{reset}}}{a_{0} + 1}"),
        ("-(x - (tau_w - a0))", r"-(x - (\tau_{w} - a_{0}))"),
        ("e^(-a0 |x|) decay", r"e^{-a_{0}\,|x|}\,\mathrm{decay}"),
        ("1 if x >= 0 else 2 x", r"\begin{cases}1 & \text{if } x \ge 0 \\ 2x & \text{otherwise}\end{cases}"),
        ("1 for x < 0; else sqrt(x)", r"\begin{cases}1 & \text{if } x < 0 \\ \sqrt{x} & \text{otherwise}\end{cases}"),
    ],
)
def test_latex(text: str, expected: str) -> None:
    assert latex(text, ("x", "tau_w", "v_reset", "a0", "decay")) == expected


def test_a_state_is_old_until_its_equation() -> None:
    lines = ["k = 1 / tau", "i = k * i + x", "h = v + i", "v = 0 if h > 1 else h   (hard reset)", "v = h - v   (soft)"]
    assert latex_step(lines, ["tau"], ["v", "i"]) == [
        r"k &= \frac{1}{\tau}",
        r"i[t] &= k \cdot i[t-1] + x[t]",
        r"h[t] &= v[t-1] + i[t]",
        r"v[t] &= \begin{cases}0 & \text{if } h[t] > 1 \\ h[t] & \text{otherwise}\end{cases} \qquad (\text{hard reset})",
        r"v[t] &= h[t] - v[t-1] \qquad (\text{soft})",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x + y", "y is not a known name; these are: x"),
        ("x + f(x)", "f is not a known function; these are: sin, cos"),
        ("x ~ 1", "what is '~'"),
        ("x[0]", "what is '['"),
        ("(x + 1", "expected ')', found 'the end'"),
        ("x +", "expected a value, found 'the end'"),
        ("x < 1 < 2", "what is '<' there"),
        ("1 for x < 0; 2 for x > 0", "one case must be without a condition, found 0"),
    ],
)
def test_what_cannot_be_read_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"cannot read {text!r}: {message}")):
        latex(text, ("x",))


def test_an_equation_has_a_target() -> None:
    with pytest.raises(ValueError, match="an equation is 'name = formula'"):
        read_equation("h >= v_threshold")
