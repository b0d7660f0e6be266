"""The numeric promises: when a neuron spikes, special values, number formats, constants, determinism."""

from __future__ import annotations

import math

import pytest
import torch

from snnkern import functional, reference
from snnkern.surrogate import ATan, Sigmoid

from support import DTYPES, NEURON_NAMES, inputs, noise, results, threads


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_spikes_at_the_threshold_and_above(dtype: torch.dtype, device: str) -> None:
    x = torch.tensor([[0.5, 1.0, 1.5, -1.0]], dtype=dtype, device=device)
    spikes, v = functional.if_(x, v_threshold=1.0, v_reset=None)
    assert spikes.tolist() == [[0.0, 1.0, 1.0, 0.0]]
    assert v.tolist() == [0.5, 0.0, 0.5, -1.0]


def test_special_values(device: str) -> None:
    """NaN never spikes; a hard reset is a choice, so that an infinite potential resets to a number."""
    x = torch.tensor([[math.nan, math.inf, -math.inf, 1.0]], device=device)
    spikes, v = functional.if_(x)
    assert spikes.tolist() == [[0.0, 1.0, 0.0, 1.0]]
    assert math.isnan(v[0]) and v[1:].tolist() == [0.0, -math.inf, 0.0]


def test_starts_at_v_reset_or_zero(device: str) -> None:
    x = torch.zeros(1, 3, device=device)
    assert functional.if_(x, v_reset=-0.5)[1].tolist() == [-0.5] * 3
    assert functional.if_(x, v_reset=None)[1].tolist() == [0.0] * 3


def test_decay_is_computed_in_double_and_rounded_once(device: str) -> None:
    x, tau = torch.ones(1, 1, device=device), 3.0
    v = functional.lif(x, tau=tau, v_threshold=10.0)[1]
    assert v.item() == torch.tensor(1 / tau).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_every_half_number_is_read_exactly(dtype: torch.dtype, device: str) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)[None].to(device)
    v = functional.if_(x, v_threshold=torch.finfo(torch.float32).max, v_reset=None)[1]
    assert v.dtype == torch.float32
    torch.testing.assert_close(v, x[0].float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_half_gradients_are_rounded_to_nearest_even(dtype: torch.dtype, device: str) -> None:
    # With T = 1 and no spike the gradient in x is the gradient in v, a float32, rounded to x's dtype.
    bits = torch.cat(
        [torch.arange(-(2**31), 2**31, 104729), torch.arange(0, 2**16) * 2**16 + 2**15, torch.arange(0, 2**16) * 2**13]
    )
    g = bits.clamp(-(2**31), 2**31 - 1).to(torch.int32).view(torch.float32).to(device)
    x = torch.zeros(1, g.numel(), dtype=dtype, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(
        functional.if_(x, detach_reset=True, v_threshold=torch.finfo(torch.float32).max)[1], x, g
    )
    torch.testing.assert_close(grad[0], g.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_states_are_float32_and_any_v_init_is_cast(device: str) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = noise((4, 6), dtype, 0, device)
        for given in DTYPES.values():
            v_init = noise((6,), given, 1, device).requires_grad_()
            spikes, v = functional.lif(x, v_init)
            assert spikes.dtype == dtype and v.dtype == torch.float32
            (grad,) = torch.autograd.grad(v.sum(), v_init)
            assert grad.dtype == given
            assert torch.equal(v, functional.lif(x, v_init.float())[1])


def test_divisions_are_exact(device: str) -> None:
    """Potentials that are a half of a threshold away from a whole number of it: the last bit of h / v_threshold decides."""
    v_threshold = noise((2**20,), torch.float64, 0).abs().add(0.01).float().to(device)
    halves = torch.arange(2**20, device=device) % 10 / 2
    x = torch.cat([halves * v_threshold, torch.tensor([math.inf, -math.inf, math.nan, 0.0], device=device)])[None]
    v_threshold = torch.cat([v_threshold, torch.full((4,), 0.3, device=device)])
    for given in (v_threshold, 0.1, 0.3):
        spikes = functional.ilif(x, tau=1.0, v_threshold=given)[0]
        assert torch.equal(spikes, (x / given).nan_to_num(0.0, math.inf).clamp(0, 4).round())


def test_exact_decay_of_one() -> None:
    """tau = 1 forgets everything: v is the input."""
    x = noise((5, 9), torch.float64, 0) * 0.1
    v = functional.lif(x, tau=1.0, store_v_seq=True)[1]
    torch.testing.assert_close(v, x)


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_same_bits_on_every_run_and_for_any_number_of_threads(neuron: str, device: str) -> None:
    tensors = inputs(neuron, (40, 3001), torch.float32, device)
    first = results(functional, neuron, tensors)
    for count in (1, 2, 3):
        with threads(count):
            again = results(functional, neuron, tensors)
        for a, b in zip([*first[0], *first[1].values()], [*again[0], *again[1].values()], strict=True):
            assert torch.equal(a, b)


def test_deterministic_algorithms_are_accepted(device: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        for neuron in NEURON_NAMES:
            results(functional, neuron, inputs(neuron, (20, 6), torch.float32, device))
    finally:
        torch.use_deterministic_algorithms(False)


def test_reference_and_operator_agree_on_tiny_numbers(device: str) -> None:
    """Subnormal numbers are not flushed."""
    x = noise((3, 64), torch.float32, 0, device) * 1e-39
    assert torch.equal(functional.lif(x)[1], reference.lif(x)[1])
    assert functional.lif(x)[1].abs().max() > 0


def test_surrogate_parameters_are_used(device: str) -> None:
    tensors = inputs("lif", (6, 5), torch.float32, device)
    grads = [results(functional, "lif", tensors, surrogate=s)[1]["x_seq"] for s in (ATan(), ATan(3.0), Sigmoid())]
    assert not torch.equal(grads[0], grads[1]) and not torch.equal(grads[0], grads[2])
