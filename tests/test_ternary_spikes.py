"""Ternary spikes: 1 at the threshold, -1 at the one below 0, each with its reset and its surrogate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from snnkern import functional, nn, surrogate

OPTIONS = {"tau": 2.0, "decay_input": False, "v_threshold": 1.0, "v_threshold_neg": 0.5}  # h = v / 2 + x


def run(*x: float, **options: float | None) -> tuple[list[float], list[float]]:
    """The spikes, and the potential after each step, of one neuron."""
    x_seq = torch.tensor(x, dtype=torch.float64)[:, None]
    spikes, v_seq = functional.ternary_lif(x_seq, **{**OPTIONS, **options}, store_v_seq=True)
    return spikes[:, 0].tolist(), v_seq[:, 0].tolist()


def test_both_thresholds_spike_and_are_taken_off() -> None:
    # h: 1.5, then 0.25 - 1.0, -0.25/2 - 0.375
    assert run(1.5, -1.0, -0.375, v_reset=None) == ([1, -1, -1], [0.5, -0.25, 0.0])


def test_a_hard_reset_goes_to_v_reset_from_either_side() -> None:
    assert run(1.5, -1.0, 0.25, v_reset=0.125) == ([1, -1, 0], [0.125, 0.125, 0.375])


@pytest.mark.parametrize("v_reset", [0.0, None])
def test_at_a_threshold_there_is_a_spike(v_reset: float | None) -> None:
    spikes, _ = run(1.0, v_reset=v_reset)
    below, _ = run(-0.5, v_reset=v_reset)
    assert spikes == [1] and below == [-1]
    assert (
        run(math.nextafter(1.0, 0.0), v_reset=v_reset)[0] == run(math.nextafter(-0.5, 0.0), v_reset=v_reset)[0] == [0]
    )
    assert run(math.nan, v_reset=v_reset)[0] == [0]


def slope(h: Tensor) -> Tensor:
    """The derivative of s: a surrogate at each threshold."""
    g = surrogate.ATan().gradient
    return g(h - 1.0) + g(-h - 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_surrogate_is_at_both_thresholds(dtype: torch.dtype) -> None:
    h = torch.linspace(-3, 3, 2001, dtype=dtype)
    leaf = h.clone().requires_grad_()
    spikes, _ = functional.ternary_lif(leaf[None], **OPTIONS, surrogate=surrogate.ATan())
    (gradient,) = torch.autograd.grad(spikes.sum(), leaf)
    torch.testing.assert_close(gradient, slope(h))


@pytest.mark.parametrize("detach", [False, True])
def test_the_gradient_of_the_reset(detach: bool) -> None:
    """dv/dh of a soft reset is 1 - v_threshold g(h - v_threshold) - v_threshold_neg g(-h - v_threshold_neg)."""
    h = torch.linspace(-3, 3, 2001, dtype=torch.float64)
    leaf = h.clone().requires_grad_()
    options = {**OPTIONS, "v_reset": None, "detach_reset": detach, "surrogate": surrogate.ATan()}
    (gradient,) = torch.autograd.grad(functional.ternary_lif(leaf[None], **options)[1].sum(), leaf)
    g = surrogate.ATan().gradient
    expected = torch.ones_like(h) if detach else 1 - g(h - 1.0) - 0.5 * g(-h - 0.5)
    torch.testing.assert_close(gradient, expected)


def test_smooth_spikes_go_from_minus_one_to_one() -> None:
    h = torch.linspace(-3, 3, 2001, dtype=torch.float64)
    smooth = surrogate.Sigmoid(spiking=False)
    spikes, v = functional.ternary_lif(h[None], **OPTIONS, v_reset=None, surrogate=smooth)
    up, down = smooth.primitive(h - 1.0), smooth.primitive(-h - 0.5)
    torch.testing.assert_close(spikes[0], up - down)
    torch.testing.assert_close(v, h - up + 0.5 * down)
    assert spikes.min() < -0.99 and spikes.max() > 0.99


def test_the_module_learns_either_threshold() -> None:
    layer = nn.TernaryLIF(v_threshold_neg=0.5, learn_v_threshold=True, learn_v_threshold_neg=True)
    x = torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(0))
    out = layer(x)
    assert set(out.unique().tolist()) == {-1.0, 0.0, 1.0}
    out.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_thresholds_are_positive() -> None:
    with pytest.raises(ValueError, match="v_threshold_neg must be a finite number > 0 or inf, got 0"):
        functional.ternary_lif(torch.zeros(1, 1), v_threshold_neg=0.0)
    with pytest.raises(ValueError, match="v_threshold must be a finite number > 0 or inf, got -1"):
        functional.ternary_lif(torch.zeros(1, 1), v_threshold=-1.0)
