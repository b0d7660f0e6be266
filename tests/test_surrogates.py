"""Each surrogate: the published formula, in Python and in the kernels; finite everywhere; primitive and gradient belong together."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from snnkern import functional, surrogate

from support import SURROGATE_CLASSES


# The formulas as published, at the default parameters, one number at a time: independent of codegen/specification/surrogates.py.
def _normal(x: float, m: float, s: float) -> float:
    return math.exp(-((x - m) ** 2) / (2 * s * s)) / (s * math.sqrt(2 * math.pi))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


PUBLISHED: dict[str, Callable[[float], float]] = {
    "sigmoid": lambda x: 4 * _logistic(4 * x) * (1 - _logistic(4 * x)),
    "atan": lambda x: 1 / (1 + (math.pi * x) ** 2),
    "piecewise_quadratic": lambda x: max(0.0, 1 - abs(x)),
    "piecewise_exp": lambda x: 0.5 * math.exp(-abs(x)),
    "soft_sign": lambda x: 1 / (2 * 2 * (1 / 2 + abs(x)) ** 2),
    "super_spike": lambda x: 1 / (1 + abs(x)) ** 2,
    "erf": lambda x: 2 / math.sqrt(math.pi) * math.exp(-((2 * x) ** 2)),
    "nonzero_sign_log_abs": lambda x: 1 / (1 + abs(x)),
    "piecewise_leaky_relu": lambda x: 0.5 if abs(x) < 1 else 0.01,
    "squarewave_fourier_series": lambda x: 4 / 8 * math.cos(2 * math.pi * x / 8),
    "s2nn": lambda x: 4 * _logistic(4 * x) * (1 - _logistic(4 * x)) if x < 0 else 1 / (x + 1),
    "q_pseudo_spike": lambda x: (1 + 2 * abs(x)) ** -2,
    "leaky_k_relu": lambda x: 1.0 if x >= 0 else 0.0,
    "fake_numerical_gradient": lambda x: 0.3 if x == 0 else min((2 * (x >= 0) - 1) / x, 0.3),
    "log_tailed_relu": lambda x: 0.0 if x <= 0 else 1.0 if x <= 1 else 1 / x,
    "rect": lambda x: 1.0 if abs(x) < 0.5 else 0.0,
    "fast_sigmoid": lambda x: 1 / (1 + 25 * abs(x)) ** 2,
    "triangle": lambda x: max(0.0, 1 - abs(x)),
    "gaussian": lambda x: _normal(x, 0, 0.5),
    "multi_gaussian": lambda x: 1.15 * _normal(x, 0, 0.5) - 0.15 * (_normal(x, 0.5, 3) + _normal(x, -0.5, 3)),
    "single_exponential": lambda x: 2 * math.exp(-2 * abs(x)),
    "periodic_exponential": lambda x: math.exp(2 * x if x < 0 else -4 * abs(x - math.floor(x + 0.5))),
    "straight_through": lambda x: 1.0,
}
POINTS = [-30.0, -4.0, -1.0, -0.75, -0.5, -0.3, -1e-3, -0.0, 0.0, 1e-3, 0.25, 0.5, 0.6, 1.0, 1.5, 7.0, 30.0]


def kernel_gradient(name: str, x: Tensor, params: list[float] | None = None) -> Tensor:
    """The surrogate gradient at x as the kernel computes it: one step from 0, threshold 0, detached reset."""
    leaf = x[None].clone().requires_grad_()
    spikes, _ = torch.ops.snnkern.if_forward(
        leaf, v_threshold=0.0, detach_reset=True, surrogate=name, surrogate_params=params
    )
    (grad,) = torch.autograd.grad(spikes, leaf, torch.ones_like(spikes))
    return grad[0]


def every_magnitude(dtype: torch.dtype, device: str) -> Tensor:
    """Numbers of both signs from the smallest to the largest of a dtype, and 0."""
    low, high = (-149, 127.99) if dtype == torch.float32 else (-1074, 1023.99)
    x = torch.exp2(torch.linspace(low, high, 20011, dtype=torch.float64))
    if dtype == torch.float64:
        x[-1] = torch.finfo(dtype).max
    x = torch.cat([x, -x, torch.zeros(1, dtype=torch.float64), torch.linspace(-8, 8, 4001, dtype=torch.float64)])
    return x.to(dtype).to(device)


@pytest.mark.parametrize("name", SURROGATE_CLASSES)
def test_gradient_is_the_published_formula(name: str, device: str) -> None:
    x = torch.tensor(POINTS, dtype=torch.float64, device=device)
    expected = torch.tensor([PUBLISHED[name](v) for v in POINTS], dtype=torch.float64, device=device)
    torch.testing.assert_close(SURROGATE_CLASSES[name]().gradient(x), expected, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(kernel_gradient(name, x), expected, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(kernel_gradient(name, x.float()), expected.float(), rtol=1e-5, atol=6e-8)


@pytest.mark.parametrize("name", SURROGATE_CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_gradient_is_finite_for_every_finite_x(name: str, dtype: torch.dtype, device: str) -> None:
    x = every_magnitude(dtype, device)
    for grad in (kernel_gradient(name, x), SURROGATE_CLASSES[name]().gradient(x)):
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("name", SURROGATE_CLASSES)
def test_kernel_precision(name: str, device: str) -> None:
    """In float32 the kernel is as good as the same formula in float64, rounded, within a few units in the last place."""
    x = torch.linspace(-20, 20, 40001, device=device)
    got, exact = kernel_gradient(name, x).double(), SURROGATE_CLASSES[name]().gradient(x.double())
    # At a jump or a kink float32 and float64 may take different sides; exponentials of large numbers lose relative precision.
    close = (got - exact).abs() <= 1e-6 * exact.abs() + 3e-7
    assert (~close).sum() <= 4
    double = kernel_gradient(name, x.double())
    torch.testing.assert_close(double, exact, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", [n for n, cls in SURROGATE_CLASSES.items() if cls.equations.has_primitive()])
def test_gradient_is_the_derivative_of_the_primitive(name: str) -> None:
    chosen = SURROGATE_CLASSES[name]()
    x = torch.tensor([p + 0.013 for p in POINTS], dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(chosen.primitive(x).sum(), x)
    torch.testing.assert_close(chosen.gradient(x.detach()), derivative, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("name", [n for n, cls in SURROGATE_CLASSES.items() if cls.equations.has_primitive()])
def test_smooth_kernel_emits_the_primitive(name: str, device: str) -> None:
    for dtype, rtol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        x = torch.linspace(-6, 6, 997, dtype=dtype, device=device)
        out = torch.ops.snnkern.if_forward(x[None], v_threshold=0.0, surrogate=name, spiking=False)[0][0]
        torch.testing.assert_close(out, SURROGATE_CLASSES[name]().primitive(x), rtol=rtol, atol=rtol / 10)


def test_more_terms_of_the_fourier_series(device: str) -> None:
    x = torch.linspace(-9, 9, 501, dtype=torch.float64, device=device)
    terms = sum(torch.cos((2 * i - 1) * 2 * math.pi * x / 5) for i in range(1, 6))
    torch.testing.assert_close(kernel_gradient("squarewave_fourier_series", x, [6, 5.0]), 4 / 5 * terms)


def test_parameters_are_checked_by_name() -> None:
    with pytest.raises(ValueError, match="Sigmoid: alpha must be a finite number > 0, got -1"):
        surrogate.Sigmoid(-1)
    with pytest.raises(ValueError, match="SquarewaveFourierSeries: n must be an integer >= 2"):
        surrogate.SquarewaveFourierSeries(n=1)
    with pytest.raises(ValueError, match="QPseudoSpike: alpha must be a finite number > 1, got nan"):
        surrogate.QPseudoSpike(math.nan)
    with pytest.raises(ValueError, match="SuperSpike: spiking must be True: this surrogate has no smooth primitive"):
        surrogate.SuperSpike(spiking=False)
    with pytest.raises(ValueError, match="SuperSpike has no smooth primitive"):
        surrogate.SuperSpike().primitive(torch.zeros(1))


def test_a_surrogate_is_a_value() -> None:
    assert surrogate.ATan() == surrogate.ATan(2.0) != surrogate.ATan(3.0)
    assert surrogate.ATan(3.0).params == [3.0] and surrogate.ATan.name == "atan"
    assert hash(surrogate.ATan()) == hash(surrogate.ATan())
    with pytest.raises(AttributeError):
        surrogate.ATan().alpha = 1.0  # type: ignore[misc]


def test_functions_pass_the_surrogate_on() -> None:
    x = torch.linspace(-1, 2, 7)[None].requires_grad_()
    spikes, _ = functional.if_(x, surrogate=surrogate.Rect(2.0), detach_reset=True)
    (grad,) = torch.autograd.grad(spikes.sum(), x)
    assert torch.equal(grad[0], surrogate.Rect(2.0).gradient(x.detach()[0] - 1))
