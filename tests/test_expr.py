"""Symbols: reverse mode gives the derivative of everything an equation may use; printing keeps the written order."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnkern.codegen.graph.expr import (
    FUNCTIONS,
    Expr,
    Printer,
    backward,
    clamp,
    flag,
    lift,
    maximum,
    minimum,
    primitive,
    select,
    series,
    smallest_cut,
    softplus,
    spike,
    topological,
    value,
    var,
    where,
)

from support import evaluate


def derivative(e: Expr, name: str, scope: dict[str, float]) -> float:
    step = 1e-6
    up, down = ({**scope, name: scope[name] + d} for d in (step, -step))
    return (evaluate(e, up) - evaluate(e, down)) / (2 * step)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function(name: str) -> None:
    others = {"power": (lift(2.5),), "maximum": (var("y"),), "minimum": (var("y"),), "clamp": (var("y"), var("z"))}
    arguments = [var("x"), *others.get(name, ())]
    inputs = [a for a in arguments if a.op == "var"]
    e = Expr(name, *arguments) * 1.7
    gradients = backward([(e, var("g"))], inputs)
    for x, y, z in ((0.3, 0.5, 0.9), (0.8, 0.5, 0.9), (2.4, 0.5, 0.9), (0.8, 0.9, 0.5)):
        scope = {"x": x, "y": y, "z": z, "g": 0.6}
        for argument, grad in zip(inputs, gradients, strict=True):
            expected = 0.6 * derivative(e, argument.value, scope)
            assert evaluate(grad, scope) == pytest.approx(expected, rel=1e-6, abs=1e-9)


expressions = st.recursive(
    st.sampled_from([var("x"), var("y"), var("z")]) | st.floats(0.5, 2).map(lambda c: var("x") * c),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from("+-*"), inner, inner).map(
            lambda t: {"+": t[1] + t[2], "-": t[1] - t[2], "*": t[1] * t[2]}[t[0]]
        ),
        st.tuples(inner, inner).map(lambda t: t[0] / (t[1] * t[1] + 1)),
        inner.map(lambda e: (e * 0.1).sin()),
        inner.map(lambda e: -e.atan()),
        st.tuples(inner, inner).map(lambda t: where(flag("f"), t[0], t[1])),
    ),
    max_leaves=12,
)


@given(expressions, st.booleans(), st.lists(st.floats(-2, 2), min_size=3, max_size=3))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_reverse_mode_is_the_derivative(e: Expr, chosen: bool, point: list[float]) -> None:
    scope: dict[str, Any] = dict(zip("xyz", point, strict=True)) | {"f": chosen, "g": 1.0}
    grads = backward([(e, var("g"))], [var(n) for n in "xyz"])
    for name, grad in zip("xyz", grads, strict=True):
        expected = derivative(e, name, scope)
        assert evaluate(grad, scope) == pytest.approx(expected, rel=1e-4, abs=1e-4 * max(1, abs(evaluate(e, scope))))


@given(expressions, st.booleans(), st.lists(st.floats(-2, 2), min_size=3, max_size=3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_cut_replaces_the_inputs(e: Expr, chosen: bool, point: list[float]) -> None:
    """From the values of the cut, and nothing else of the forward pass, the gradients are the same."""
    scope: dict[str, Any] = dict(zip("xyz", point, strict=True)) | {"f": chosen, "g": 0.7}
    sources = [var(n) for n in "xyz"]
    grads = value(backward([(e, var("g"))], sources))
    cut = smallest_cut(grads, sources, [var("g")])
    assert len(cut) <= len(sources)
    noted = {f"m{i}": evaluate(node, scope) for i, node in enumerate(cut)}
    rest = value(grads, {node: var(name) for node, name in zip(cut, noted, strict=True)})
    assert not set(sources).intersection(topological(rest))
    for grad, expected in zip(rest, grads, strict=True):
        assert evaluate(grad, {"f": chosen, "g": 0.7, **noted}) == evaluate(expected, scope)


def test_a_cut_is_the_smallest_and_the_nearest_to_the_gradients() -> None:
    x, v, g = var("x"), var("v"), var("g")
    h = (v + x).exp()
    assert smallest_cut([g * (h * h)], [x, v], [g]) == [h * h]
    assert smallest_cut([where(h < 0, g, 0)], [x, v], [g]) == [h]  # the comparison is no number
    assert smallest_cut([g * x, g * v], [x, v], [g]) == [x, v]
    assert smallest_cut([g * 2], [x, v], [g]) == []


def text(e: Expr) -> str:
    return "\n".join(line.strip() for line in Printer().print([("return", e)]))


def test_printing_keeps_the_written_order() -> None:
    a, b, c = var("a"), var("b"), var("c")
    assert text(a + (b - c)) == "return a + (b - c);"
    assert text(a - b - c) == "return a - b - c;"
    assert text(a / (b * c) * a) == "return a / (b * c) * a;"
    assert text(-(a + b) * c) == "return -(a + b) * c;"


def test_only_exact_rewrites() -> None:
    a = var("a")
    assert (0 + a) is a and (a * 1) is a and (a - 0) is a and (a / 1) is a
    assert (a * 0).value == 0.0 and (0 - (0 - a)) is a
    assert (a + a).op == "+"  # not 2 * a
    f, b = flag("f"), var("b")
    assert where(f, a, 0) + where(f, 0, b) is where(f, a, b) is where(f, 0, b) + where(f, a, 0)
    assert (where(f, a, 0) + where(flag("other"), 0, b)).op == "+"


def test_equal_subexpressions_are_computed_once() -> None:
    a, b = var("a"), var("b")
    assert text((a + b).exp() + (a + b).exp()) == "const R t0 = math::exp(a + b);\nreturn t0 + t0;"


def test_detach_keeps_the_value_and_stops_the_gradient() -> None:
    x, g = var("x"), var("g")
    e = x * x.detach()
    (grad,) = backward([(e, g)], [x])
    assert text(e) == "return x * x;" and text(grad) == "return g * x;"


def test_the_gradient_of_a_choice_by_a_spike() -> None:
    u, g = var("u"), var("g")
    (grad,) = backward([(select(spike(u), 3, var("h")), g)], [u])
    assert text(grad) == "return g * (R(3.0) - h) * surrogate.gradient(u);"


def test_a_series_is_a_loop_in_code_and_a_sum_in_numbers() -> None:
    x, n = var("x"), var("n")
    printed = text(series(n, lambda i: (i * x.exp()).sin()))
    assert "for (int i = 1; i < n; ++i)" in printed and printed.index("math::exp") < printed.index("for")
    assert series(4, lambda i: i * i) == 1 + 4 + 9


def test_clear_errors() -> None:
    x = var("x")
    with pytest.raises(TypeError, match="cannot branch in Python on a traced value: use where"):
        bool(x > 0)
    with pytest.raises(
        AttributeError, match=r"uses the method 'sinh', which the generator does not know; it knows .*tanh"
    ):
        x.sinh()
    with pytest.raises(AttributeError, match="the functions where, maximum, minimum, clamp, softplus"):
        x.maximum(0.0)
    with pytest.raises(TypeError, match="no implementation for a condition of type str"):
        where("x", 1, 2)
    with pytest.raises(TypeError, match="maximum: no implementation for an argument of type str"):
        maximum("x", 1)
    with pytest.raises(TypeError, match=r"a power takes a number as its exponent: write \(a.log\(\) \* b\).exp\(\)"):
        x ** var("y")
    with pytest.raises(TypeError, match=r"write \(a \* log\(2\)\).exp\(\) for 2 \*\* a"):
        2**x
    with pytest.raises(TypeError, match="an equation takes numbers and traced values, got None"):
        x + None
    for number in (math.inf, math.nan):
        with pytest.raises(ValueError, match="a number in an equation must be finite, got"):
            x * number


@pytest.mark.parametrize("other", [0, 1.5, var("x"), var("y"), None], ids=str)
def test_equality_is_refused(other: Any) -> None:
    """Python would compare identities, and an equation would silently lose a branch."""
    for ask in (operator.eq, operator.ne):
        with pytest.raises(TypeError, match=r"cannot ask whether a traced value equals another: .* use <= or >="):
            ask(var("x"), other)
    if other is not None and not isinstance(other, Expr):
        with pytest.raises(TypeError, match="cannot ask whether a traced value equals another"):
            other == var("x")  # noqa: B015


def test_nodes_are_found_by_identity() -> None:
    nodes = [var(f"x{i}") * 2 + i for i in range(1000)]
    places = {e: i for i, e in enumerate(nodes)}
    assert [places[var(f"x{i}") * 2 + i] for i in range(1000)] == list(range(1000))
    assert var("x") + 1 not in places and len({*nodes, *nodes}) == 1000


def test_functions_of_numbers_are_numbers() -> None:
    """A term of a series, or a parameter that the reference keeps as a number, may be one."""
    assert maximum(1, 2.5) == 2.5 and minimum(1, 2.5) == 1 and clamp(3.0, 0, 2) == 2
    assert softplus(0.0) == pytest.approx(math.log(2)) and math.isnan(maximum(math.nan, 1.0))


def test_numpy_numbers_are_numbers() -> None:
    x = var("x")
    assert numpy.float64(2) * x is 2 * x and x - numpy.float32(0.5) is x - 0.5


def test_a_step_may_ask_for_its_surrogate_at_several_places() -> None:
    """Each place has a number, and one that depends on another comes after it."""
    u, w = var("u"), var("w")
    printed = text(Expr("gradient", w + Expr("gradient", u)) * Expr("gradient", u) + primitive(w))
    assert printed == (
        "const R t0 = surrogate.gradient(u);\n"
        "return question<1>(surrogate).gradient(w + t0) * t0 + question<2>(surrogate).primitive(w);"
    )
