"""The functions of cfunction: what their code computes, in float and half2, on CPU and CUDA."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from snnkern.auto_cuda import base, cfunction
from snnkern.codegen.graph.expr import var
from snnkern.codegen.specification import surrogates

from support import SURROGATE_CLASSES, noise

DTYPES = {"float": torch.float32, "half2": torch.float16}


def evaluate(make: Callable[..., str], dtype: str, *inputs: Tensor, **others: Any) -> tuple[Tensor, Tensor]:
    """What a function computes as a statement, and as an expression. `inputs` are its operands a, b, c, ..."""
    kernel = base.CKernel1D("evaluate")
    for name, _ in zip("abcde", inputs, strict=False):
        kernel.add_param(f"const {dtype} *", name)
    kernel.add_param(f"{dtype} *", "statement")
    kernel.add_param(f"{dtype} *", "expression")
    operands = [f"{name}[index]" for name, _ in zip("abcde", inputs, strict=False)]
    typer = base.CodeTyper(0)
    typer.append(make("statement[index]", *operands, dtype=dtype, **others))
    typer.append(f"expression[index] = {make(None, *operands, dtype=dtype, **others)}")
    kernel.core = typer.codes
    statement, expression = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    kernel.simple_call(**dict(zip("abcde", inputs, strict=False)), statement=statement, expression=expression)
    return statement, expression


def halves(t: Tensor) -> Tensor:
    """Masks of 0 and 1."""
    return (t >= 0).to(t.dtype)


x, y, z = (noise((4001,), torch.float64, seed, scale=2.0) for seed in range(3))
x[:4], y[:4] = torch.tensor([0.0, -0.0, 1.0, -1.0]), torch.tensor([0.0, 0.0, 1.0, 2.0])  # ties

# Each function, its operands, what it computes in float64, and its error: in units of the format's precision.
FUNCTIONS: dict[str, tuple[tuple[Tensor, ...], Callable[..., Tensor], float]] = {
    "add": ((x, y), torch.add, 1),
    "sub": ((x, y), torch.sub, 1),
    "mul": ((x, y), torch.mul, 1),
    "div": ((x, y.abs() + 0.5), torch.div, 2),
    "neg": ((x,), torch.neg, 0),
    "abs": ((x,), torch.abs, 0),
    "exp": ((x,), torch.exp, 4),
    "power": ((x.abs() + 0.1, y * 0.5), torch.pow, 8),
    "minimal": ((x, y), torch.fmin, 0),
    "maximum": ((x, y), torch.fmax, 0),
    "greater_equal": ((x, y), lambda a, b: (a >= b).to(a.dtype), 0),
    "greater_than": ((x, y), lambda a, b: (a > b).to(a.dtype), 0),
    "heaviside": ((x,), lambda a: (a >= 0).to(a.dtype), 0),
    "if_else": ((x, y, halves(z)), lambda a, b, m: torch.where(m != 0, a, b), 0),
    "if_else_else": (
        (x, y, z, halves(y), halves(z)),
        lambda a, b, c, m, n: torch.where(m != 0, a, torch.where(n != 0, b, c)),
        0,
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function(name: str, dtype: str, device: str) -> None:
    operands, function, units = FUNCTIONS[name]
    given = [t.to(DTYPES[dtype]).to(device) for t in operands]
    expected = function(*(t.double() for t in given))
    precision = torch.finfo(DTYPES[dtype]).eps
    for result in evaluate(getattr(cfunction, name), dtype, *given):
        error = (result.double() - expected).abs() / expected.abs().clamp(min=torch.finfo(DTYPES[dtype]).tiny)
        assert error.max() <= units * precision, f"at {expected[error.argmax()]}: {error.max() / precision} units"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("word", ["tanh", "sqrt", "round", "power"])
def test_words_of_equations(word: str, dtype: str, device: str) -> None:
    equations: Callable[..., Any] = (lambda a: a**2.5) if word == "power" else (lambda a: getattr(a, word)())
    operand = (x.abs() + 0.1).to(device, DTYPES[dtype])
    results = evaluate(lambda result, a, dtype: cfunction.code(result, equations(var(a)), dtype), dtype, operand)
    for result in results:
        torch.testing.assert_close(
            result, equations(operand.double()).to(DTYPES[dtype]), rtol=2e-3 if dtype == "half2" else 1e-6, atol=0
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_and_products_are_rounded_to_nearest(dtype: str, device: str) -> None:
    """To the bit what PyTorch computes in that format."""
    a, b = (t.to(DTYPES[dtype]).to(device) for t in (x, y))
    for name in ("add", "sub", "mul"):
        assert torch.equal(evaluate(getattr(cfunction, name), dtype, a, b)[0], getattr(torch, name)(a, b))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity(dtype: str, device: str) -> None:
    a = torch.tensor([math.nan, 1.0, math.inf, -math.inf], dtype=DTYPES[dtype], device=device)
    b = torch.tensor([1.0, math.nan, 2.0, 2.0], dtype=DTYPES[dtype], device=device)
    assert evaluate(cfunction.maximum, dtype, a, b)[0].tolist() == [1.0, 1.0, math.inf, 2.0]
    assert evaluate(cfunction.minimal, dtype, a, b)[0].tolist() == [1.0, 1.0, 2.0, -math.inf]
    assert evaluate(cfunction.greater_equal, dtype, a, b)[0].tolist() == [0.0, 0.0, 1.0, 0.0]


# ---- surrogates -------------------------------------------------------------------------------------------------------

# The parameters of each surrogate function, two settings; that of surrogates otherwise goes by cuda_codes.
SURROGATE_FUNCTIONS: dict[str, list[dict[str, float]]] = {
    "sigmoid": [{"alpha": 4.0}, {"alpha": 1.3}],
    "atan": [{"alpha": 2.0}, {"alpha": 0.7}],
    "piecewise_leaky_relu": [{"w": 1.0, "c": 0.01}, {"w": 0.3, "c": 0.1}],
    "s2nn": [{"alpha": 4.0, "beta": 1.0}, {"alpha": 1.5, "beta": 0.7}],
    "q_pseudo_spike": [{"alpha": 2.0}, {"alpha": 1.5}],
    "leaky_k_relu": [{"leak": 0.0, "k": 1.0}, {"leak": 0.2, "k": 0.7}],
    "fake_numerical_gradient": [{"alpha": 0.3}, {"alpha": 2.0}],
    "log_tailed_relu": [{"alpha": 0.0}, {"alpha": 0.3}],
}
# Relative to the largest value. In half2 every step is rounded to 11 bits; the argument of an exponential amplifies that.
SURROGATE_TOLERANCE = {"float": 2e-6, "half2": 2e-2}


def points(dtype: str, device: str) -> Tensor:
    """Numbers where no surrogate jumps, and 0. Infinities in between, e.g. 1/x, must not become NaN."""
    u = torch.cat([torch.linspace(-6, 6, 1000) + 0.0031, torch.tensor([1e-7, -1e-7, 20.0, -20.0])])
    return u.to(DTYPES[dtype]).to(device)


def check_gradient(code: Callable[..., str], expected: Callable[[Tensor], Tensor], dtype: str, device: str) -> None:
    u = points(dtype, device)
    exact = expected(u.double())
    results = evaluate(lambda place, operand, dtype: code(y=place, x=operand, dtype=dtype), dtype, u)
    for result in results:
        error = (result.double() - exact).abs().max() / exact.abs().max()
        assert error <= SURROGATE_TOLERANCE[dtype], f"at {u[(result.double() - exact).abs().argmax()]}: {error}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "setting"), [(n, i) for n in SURROGATE_FUNCTIONS for i in (0, 1)])
def test_surrogate_functions(name: str, setting: int, dtype: str, device: str) -> None:
    values = SURROGATE_FUNCTIONS[name][setting]
    chosen = SURROGATE_CLASSES[name](**values)
    function = getattr(cfunction, f"{name}_backward")

    def expected(u: Tensor) -> Tensor:
        if name == "piecewise_leaky_relu":  # twice as high inside
            return torch.where(u.abs() <= values["w"], 1 / values["w"], torch.full_like(u, values["c"]))
        result: Tensor = chosen.gradient(u)
        return result

    check_gradient(lambda **place: function(**place, **values), expected, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SURROGATE_CLASSES)
def test_every_surrogate_has_code(name: str, dtype: str, device: str) -> None:
    chosen = SURROGATE_CLASSES[name]()
    check_gradient(chosen.cuda_codes, chosen.gradient, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid(dtype: str, device: str) -> None:
    check_gradient(lambda **place: cfunction.sigmoid(**place, alpha=3.0), lambda u: (3 * u).sigmoid(), dtype, device)


def test_at_the_edges(device: str) -> None:
    """Where a surrogate changes its form, and at both zeros."""
    u = torch.tensor([-1.0, -0.0, 0.0, 1.0], device=device)
    for name, expected in (
        ("piecewise_leaky_relu", [1.0, 1.0, 1.0, 1.0]),
        ("fake_numerical_gradient", [0.3, 0.3, 0.3, 0.3]),
        ("log_tailed_relu", [0.0, 0.0, 0.0, 1.0]),
        ("leaky_k_relu", [0.0, 1.0, 1.0, 1.0]),
        ("s2nn", [SURROGATE_CLASSES["sigmoid"]().gradient(torch.tensor(-1.0)).item(), 1.0, 1.0, 0.5]),
    ):
        function, values = getattr(cfunction, f"{name}_backward"), SURROGATE_FUNCTIONS[name][0]
        for dtype, torch_dtype in DTYPES.items():
            v = u.to(torch_dtype)
            result, _ = evaluate(lambda p, o, dtype, f=function, q=values: f(y=p, x=o, dtype=dtype, **q), dtype, v)
            torch.testing.assert_close(result.float().cpu(), torch.tensor(expected), rtol=2e-3, atol=1e-6)


# ---- text -------------------------------------------------------------------------------------------------------------


def test_operands_are_put_in_parentheses() -> None:
    assert cfunction.mul("z", "a + b", "c - d", "float") == "z = (a + b) * (c - d);"
    assert cfunction.if_else("z", "a + b", "c", "m", "float") == "z = (a + b) * m + c * (1.0f - m);"
    assert cfunction.sub("z", "a", "b - c", "float") == "z = a - (b - c);"
    assert cfunction.neg("z", "-a", "float") == "z = -(-a);"


@pytest.mark.parametrize(
    "operand", ["a", "x_seq[t + dt]", "1.0f", "3", "1e-05f", "f(a, b)", "(a + b)", "p.x", "a[i][j]"]
)
def test_single_operands_are_not(operand: str) -> None:
    assert cfunction.mul("z", operand, "y", "float") == f"z = {operand} * y;"
    assert cfunction.mul("z", operand, "y", "half2") == f"z = __hmul2_rn({operand}, y);"


@pytest.mark.parametrize("operand", ["(a) + (b)", "-1.0f", "a b", "f(a) + g(b)", "a ? b : c", "*p", "a[i] + 1"])
def test_what_only_looks_like_one(operand: str) -> None:
    assert cfunction.mul("z", operand, "y", "float") == f"z = ({operand}) * y;"


@pytest.mark.parametrize(
    ("number", "text"),
    [(1, "1.0f"), (2.0, "2.0f"), (0.1, "0.1f"), (1e-5, "1e-05f"), (0, "0.0f"), (-0.5, "-0.5f"), (1e20, "1e+20f"),
     (16777216, "16777216.0f"), (1 / 3, "0.33333334f"), (math.pi, "3.1415927f")],
)  # fmt: skip
def test_constants_are_exact(number: float, text: str) -> None:
    assert cfunction.constant("y", number, "float") == f"y = {text};"
    (nearest,) = struct.unpack("f", struct.pack("f", number))
    (printed,) = struct.unpack("f", struct.pack("f", float(text[:-1])))
    assert printed == nearest
    assert cfunction.constant(None, 1, "half2") == "(__float2half2_rn(1.0f))"


def test_constants_must_be_numbers() -> None:
    for wrong in (math.inf, math.nan, 1e39):
        with pytest.raises(ValueError, match=f"x must be a number that fits float, got {re.escape(repr(wrong))}"):
            cfunction.constant("y", wrong, "float")


def test_float2half2(device: str) -> None:
    assert cfunction.float2half2("y", "a") == "y = __float2half2_rn(a);"
    assert cfunction.float2half2(None, "a + b") == "(__float2half2_rn((a + b)))"


def test_wrap_return_codes() -> None:
    assert cfunction.wrap_return_codes("y", "a + b") == "y = a + b;"
    assert cfunction.wrap_return_codes(None, "a + b") == "(a + b)"


def test_a_place_may_declare_a_variable() -> None:
    assert cfunction.add("const float z", "x", "y", "float") == "const float z = x + y;"


def test_clear_errors() -> None:
    with pytest.raises(ValueError, match="the equations use 'relu', for which cfunction has no code"):
        cfunction.code("y", var("x").relu(), "float")
    with pytest.raises(ValueError, match="dtype must be 'float' or 'half2', got 'double'"):
        cfunction.add("z", "x", "y", "double")
    with pytest.raises(
        TypeError,
        match=re.escape("y must be code, a str, got 2.0; a number becomes code with constant(None, 2.0, dtype)"),
    ):
        cfunction.add("z", "x", 2.0, "float")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigmoid_backward: alpha must be a finite number > 0, got 0"):
        cfunction.sigmoid_backward("y", "x", 0, "float")
    with pytest.raises(ValueError, match="q_pseudo_spike_backward: alpha must be a finite number > 1, got 1"):
        cfunction.q_pseudo_spike_backward("y", "x", 1.0, "half2")
    with pytest.raises(TypeError, match=re.escape("atan_backward takes ['alpha'], got ['alpha', 'beta']")):
        cfunction.surrogate_backward(surrogates.ATan, "y", "x", "float", alpha=2.0, beta=1.0)
    for wrong in ("2", None, True, np.bool_(True), 2j):
        for name, call in (
            ("x", lambda v: cfunction.constant("y", v, "half2")),
            ("x", cfunction.float_literal),
            ("alpha", lambda v: cfunction.sigmoid("y", "x", v, "float")),
            ("alpha", lambda v: cfunction.atan_backward("y", "x", v, "float")),
            ("c", lambda v: cfunction.piecewise_leaky_relu_backward("y", "x", 1.0, v, "float")),
        ):
            with pytest.raises(TypeError, match=re.escape(f"{name} must be a number, got {wrong!r}")):
                call(wrong)


@pytest.mark.parametrize("kind", [int, np.int64, np.float32, np.array, torch.tensor], ids=lambda k: k.__name__)
def test_numbers_of_any_type(kind: Any) -> None:
    for function, names in (
        ("constant", ()),
        ("sigmoid", ("x",)),
        ("sigmoid_backward", ("x",)),
        ("atan_backward", ("x",)),
    ):
        for dtype in ("float", "half2"):
            texts = {getattr(cfunction, function)("y", *names, number(2), dtype) for number in (float, kind)}
            assert len(texts) == 1, texts
