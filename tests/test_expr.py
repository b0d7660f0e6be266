"""Symbols: reverse mode gives the derivative of everything an equation may use; printing keeps the written order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnkern.codegen.graph.expr import (
    FUNCTIONS,
    Expr,
    Printer,
    backward,
    flag,
    select,
    series,
    smallest_cut,
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
    x = var("x")
    e = getattr(x, name)() * 1.7
    (grad,) = backward([(e, var("g"))], [x])
    for at in (0.3, 0.8, 2.4):
        scope = {"x": at, "g": 0.6}
        assert evaluate(grad, scope) == pytest.approx(0.6 * derivative(e, "x", scope), rel=1e-6, abs=1e-9)


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
    with pytest.raises(TypeError, match="cannot branch in Python on a traced value: use where"):
        bool(var("x") > 0)
    with pytest.raises(AttributeError, match="uses the function 'tanh', which the generator does not know"):
        var("x").tanh()
    with pytest.raises(TypeError, match="no implementation for a condition of type str"):
        where("x", 1, 2)
