"""The formulas in the docs are true: read as text, they compute what the equations compute; and all of them become LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import groupby
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from snnkern.codegen.emit.docs import pages
from snnkern.codegen.emit.python import forms, function_name, module_name, step_equations
from snnkern.codegen.graph.formula import Equation, Node, latex, latex_step, read, read_equation
from snnkern.codegen.specification.base import RESETS, Float, Neuron, Step, Surrogate
from snnkern.codegen.specification.neurons import NEURONS
from snnkern.codegen.specification.surrogates import SURROGATES

from support import SURROGATE_CLASSES, flag_settings, neuron_class

OPERATIONS: dict[str, Callable[..., float]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, " ": lambda a, b: a * b,
    "/": lambda a, b: a / b, "^": lambda a, b: a**b, "neg": lambda a: -a, "=": lambda a, b: a == b,
    "==": lambda a, b: a == b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b, "and": lambda a, b: a and b,
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


SAMPLES = 200  # enough for every branch of every equation
SHOWN = {"h", "s", "ds/dh"}  # what an equation may define beside states, and a step computes under this name


@pytest.mark.parametrize("case", [f"{n.name}:{r}" for n in NEURONS for r in n.resets()])
def test_the_equations_of_a_neuron_are_what_it_computes(case: str) -> None:
    name, reset = case.split(":")
    neuron = neuron_class(name)
    lines = [read_equation(line) for line in step_equations(neuron)]
    used: list[Equation] = []
    for flags in flag_settings(name):
        given, expected = _step(neuron, flags, reset)
        assert expected.keys() == {s.name for s in neuron.states} | {line.target for line in lines} & SHOWN
        holding = [line for line in lines if _applies(line.note, flags, reset)]
        assert expected.keys() <= {line.target for line in holding}
        used += holding
        for i in range(SAMPLES):
            scope = {key: float(value[i]) for key, value in given.items()} | {"e": math.e, "pi": math.pi}
            for target, alternatives in groupby(holding, lambda line: line.target):
                scope[target] = [compute(line.formula, scope) for line in alternatives][-1]
                if target in expected:
                    exact = float(expected[target][i])
                    assert scope[target] == pytest.approx(exact, rel=1e-9, abs=1e-9), (target, flags, i)
                    scope[target] = exact  # so that an h at the threshold is at it
    others = [r for r in neuron.resets() if r != reset]
    assert all(any(f"{r} reset" in line.note for r in others) for line in lines if line not in used), "never holds"


def _step(neuron: type[Neuron], flags: dict[str, bool], reset: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A step of many samples: what the neuron is given, and what it computes, by name."""
    generator = torch.Generator().manual_seed(0)
    given = {key: torch.full((SAMPLES,), value, dtype=torch.float64) for key, value in flags.items()}
    for i, q in enumerate(q for q in neuron.all_parameters() if isinstance(q, Float)):
        value = q.default if q.range.integer else q.default + 0.1 * (i + 1)
        given[q.name] = torch.full((SAMPLES,), value, dtype=torch.float64)
    if reset == "soft":
        given["v_reset"] = torch.zeros(SAMPLES, dtype=torch.float64)
    for name in ("x", *(t.weight for t in neuron.learned), *(s.name for s in neuron.states)):
        given[name] = torch.randn(SAMPLES, generator=generator, dtype=torch.float64) * 4
    for state in neuron.states:
        given[state.name][:40] = 0.0
    given["x"][0] = 0.0
    computed = _compute(neuron, flags, reset, given)
    if "h" in computed:  # at the threshold, and at four of them, the most spikes that ILIF makes
        legal = next(p.range for p in neuron.firing if p.name == "v_threshold")
        for i in range(1, 40):
            h = float(computed["h"][i]) / (1 if i < 20 else 4)
            given["v_threshold"][i] = h if legal.holds(h) else 1.0
        computed = _compute(neuron, flags, reset, given)
    return given, computed


def _compute(neuron: type[Neuron], flags: dict[str, bool], reset: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The new states, h and s, and for a spike without a surrogate its derivative."""
    p = SimpleNamespace(**{**given, **flags})
    for q in neuron.all_parameters():
        if isinstance(q, Float) and q.inverse:
            setattr(p, q.inverse, 1 / given[q.name])
    for t in neuron.learned:
        setattr(p, t.name, given[t.weight].sigmoid())
    step = Step(lambda u: (u >= 0).to(u.dtype), lambda s, a, b: torch.where(s != 0, a, b), reset)
    x = given["x"].clone().requires_grad_()
    spike, new = neuron.step(x, [given[s.name] for s in neuron.states], p, step)
    computed: dict[str, Tensor] = {s.name: value for s, value in zip(neuron.states, new, strict=True)}
    computed.update({name: value for value, name in step.names.items()})
    if "s" in computed:
        assert torch.equal(computed["s"], spike)
        if not neuron.has_surrogate:
            computed["ds/dh"] = torch.autograd.grad(spike.sum(), computed["h"], retain_graph=True)[0]
    return {key: value.detach() for key, value in computed.items()}


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
        shown = [n.source, f"{n.name}.svg", *(s.doc for s in n.states)]
        for _, recurrent in forms([n]):
            functions = [f"{m}.{function_name(n, recurrent)}" for m in ("functional", "reference")]
            shown += [f"autofunction:: snnkern.{name}\n" for name in functions]
            shown.append(f"autoclass:: snnkern.nn.{module_name(n, recurrent)}\n")
        assert all(text in page for text in (*shown, f"torch.ops.snnkern.{n.name}_forward(Tensor x_seq"))
        assert n.name in made["neurons/list.md"]
    for s in SURROGATES:
        section = ("\n" + made["surrogates.md"]).split(f"\n## {s.__name__}\n")[1].split("\n## ")[0]
        assert f'"{s.name}"' in section and f"autoclass:: snnkern.surrogate.{s.__name__}\n" in section


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tau_w v_reset / (a0 + 1)", r"\frac{\tau_{w}\,v_{\mathrm{reset}}}{a_{0} + 1}"),
        ("-(x - (tau_w - a0))", r"-(x - (\tau_{w} - a_{0}))"),
        ("e^(-a0 |x|) decay", r"e^{-a_{0}\,|x|}\,\mathrm{decay}"),
        ("1 if x >= 0 else 2 x", r"\begin{cases}1 & \text{if } x \ge 0 \\ 2x & \text{otherwise}\end{cases}"),
        (
            "1 if x >= 0 and a0 < x <= 2 a0 else 0",
            r"\begin{cases}1 & \text{if } x \ge 0 \text{ and } a_{0} < x \le 2a_{0} \\ 0 & \text{otherwise}\end{cases}",
        ),
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
        ("x < 1 < 2 < 3", "what is '<' there"),
        ("x and 1", "what is 'and' there"),
        ("1 for x < 0; 2 for x > 0", "one case must be without a condition, found 0"),
    ],
)
def test_what_cannot_be_read_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"cannot read {text!r}: {message}")):
        latex(text, ("x",))


def test_an_equation_has_a_target() -> None:
    with pytest.raises(ValueError, match="an equation is 'name = formula'"):
        read_equation("h >= v_threshold")
