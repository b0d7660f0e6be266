"""An infinite threshold is one that no potential reaches: the neuron adds up and never spikes, no gradient passes a spike,
and nothing becomes NaN. An infinite time constant forgets nothing.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from snnkern import functional, reference, surrogate
from snnkern.codegen.emit.step import is_exact
from snnkern.codegen.specification.neurons import NEURONS, Driven

from support import (
    DTYPES,
    NEURON_NAMES,
    SURROGATE_CLASSES,
    TOLERANCE,
    error,
    flag_settings,
    function,
    inputs,
    neuron_class,
    noise,
    operator,
    options_of,
    resets,
    results,
    surrogates,
)

FIRING = [n.name for n in NEURONS if n.firing]
INFINITE = {"v_threshold": math.inf, "v_threshold_neg": math.inf}
# No potential here comes near it, and the gradient of Rect there is 0. (That of ilif, times its threshold, is 1.)
BEYOND_REACH = {
    "v_threshold": 2.0**100,
    "v_threshold_neg": 2.0**100,
    "surrogate": surrogate.Rect(),
    "detach_reset": True,
}


def slow(neuron: str) -> dict[str, float]:
    """Neurons that drive themselves would rise without bound, where no spike brings them back: few steps are as one."""
    return {"tau": 64.0} if issubclass(neuron_class(neuron), Driven) else {}


def check_same(found: Any, expected: Any, dtype: torch.dtype, exact: bool = True) -> None:
    (values, grads), (want, want_grads) = found, expected
    assert all(t.isfinite().all() for t in (*values, *grads.values()))
    assert not values[0].any()
    for a, b in zip(values, want, strict=True):
        assert torch.equal(a, b) if exact else error(a, b) <= TOLERANCE[dtype]
    for name in grads:
        assert error(grads[name], want_grads[name]) <= TOLERANCE[dtype], name


def run(module: Any, neuron: str, tensors: dict[str, Tensor], **options: Any) -> Any:
    return results(module, neuron, tensors, **options_of(neuron, store_v_seq=True, **slow(neuron), **options))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("neuron", FIRING)
def test_a_threshold_beyond_reach(neuron: str, dtype: torch.dtype, device: str) -> None:
    tensors = inputs(neuron, (20, 6), dtype, device, reset="soft")
    for reset in resets(neuron):
        for flags in flag_settings(neuron):
            options = {**reset, **flags}
            found = run(functional, neuron, tensors, **options, **INFINITE)
            check_same(found, run(functional, neuron, tensors, **{**options, **BEYOND_REACH}), dtype)
            there = run(reference, neuron, tensors, **options, **INFINITE)
            check_same(there, found, dtype, is_exact(neuron_class(neuron)))


@pytest.mark.parametrize("neuron", FIRING)
@pytest.mark.parametrize("module", [functional, reference])
def test_every_surrogate(neuron: str, module: Any) -> None:
    """Also those whose gradient does not fall to 0; and in smooth mode, where the primitive stands for the spike."""
    tensors = inputs(neuron, (5, 6), torch.float32, reset="soft")
    for reset in resets(neuron):
        expected = run(module, neuron, tensors, **{**reset, **BEYOND_REACH})
        slopes = [{"surrogate": c} for c in (surrogate.PiecewiseLeakyReLU(c=0.5), surrogate.LeakyKReLU(leak=1.0))]
        for chosen in [*surrogates(neuron), *surrogates(neuron, smooth=True), *slopes]:
            found = run(module, neuron, tensors, **reset, **INFINITE, **chosen)
            check_same(found, expected, torch.float32)


@pytest.mark.parametrize("neuron", [n.name for n in NEURONS if n.conventions])
@pytest.mark.parametrize(
    "convention",
    [{"strict": True}, {"delay_reset": True}, {"max_spikes": 3}, {"max_spikes": None}, {"v_min": -0.5}],
    ids=lambda convention: "-".join(f"{k}={v}" for k, v in convention.items()),
)
def test_conventions(neuron: str, convention: dict[str, Any]) -> None:
    if not convention.keys() <= {p.name for p in neuron_class(neuron).conventions}:
        pytest.skip(f"{neuron} has no such convention")
    tensors = inputs(neuron, (20, 6), torch.float32, reset="soft")
    for reset in resets(neuron):
        options = {**reset, **convention}
        found = run(functional, neuron, tensors, **options, **INFINITE)
        check_same(found, run(functional, neuron, tensors, **{**options, **BEYOND_REACH}), torch.float32)
        check_same(run(reference, neuron, tensors, **options, **INFINITE), found, torch.float32)


@pytest.mark.parametrize("neuron", FIRING)
@pytest.mark.parametrize("module", [functional, reference])
@pytest.mark.parametrize("chosen", ["sigmoid", "straight_through"])
def test_among_other_thresholds(neuron: str, module: Any, chosen: str, device: str) -> None:
    """In a tensor, each neuron has its own: those with an infinite one do as alone, the others are not touched."""
    tensors = inputs(neuron, (20, 6), torch.float32, device, reset="soft")
    for p in neuron_class(neuron).learned:
        tensors[p.name] = tensors[p.name].expand(6)
    infinite = torch.tensor([True, False] * 3, device=device)
    tensors["v_threshold"] = torch.where(infinite, math.inf, torch.full((6,), 0.125, device=device))
    incoming = [noise((20, 6), torch.float32, i, device) for i in range(1 + len(neuron_class(neuron).states))]
    for reset in resets(neuron):
        options = options_of(
            neuron,
            **reset,
            **slow(neuron),
            surrogate=SURROGATE_CLASSES[chosen](),
            store_v_seq=True,
            v_threshold_neg=math.inf,
        )

        def of(part: Any, options: dict[str, Any] = options) -> tuple[Any, dict[str, Tensor]]:
            leaves = {name: t.detach()[..., part].requires_grad_() for name, t in tensors.items()}
            outputs = function(module, neuron)(**leaves, **options)
            grads = torch.autograd.grad(outputs, list(leaves.values()), [g[..., part] for g in incoming])
            return outputs, dict(zip(leaves, grads, strict=True))

        values, grads = of(slice(None))
        assert not values[0][:, infinite].any() and values[0][:, ~infinite].any()
        assert not grads["v_threshold"][infinite].any()
        for part in (infinite, ~infinite):
            alone, its_grads = of(part)
            assert all(torch.equal(a[..., part], b) for a, b in zip(values, alone, strict=True))
            assert all(torch.equal(grads[name][..., part], g) and g.isfinite().all() for name, g in its_grads.items())


def test_an_infinite_threshold_in_a_gradient_check() -> None:
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    v = torch.randn(4, dtype=torch.float64, requires_grad=True)
    for v_reset in (0.5, None):
        assert torch.autograd.gradcheck(
            lambda x, v, v_reset=v_reset: functional.lif(
                x, v, v_threshold=math.inf, v_reset=v_reset, surrogate=surrogate.StraightThrough(), store_v_seq=True
            ),
            (x, v),
        )


@pytest.mark.parametrize("module", [functional, reference])
@pytest.mark.parametrize("tau", [math.inf, torch.tensor(math.inf)], ids=["number", "tensor"])
def test_an_infinite_time_constant_forgets_nothing(module: Any, tau: Any) -> None:
    x = torch.randn(20, 6)
    for v_reset in (-0.25, None):
        found = module.lif(x, tau=tau, decay_input=False, v_reset=v_reset)
        assert all(map(torch.equal, found, module.if_(x, v_reset=v_reset)))
    still, v = module.lif(x, torch.full((6,), 0.5), tau=tau)
    assert not still.any() and bool((v == 0.5).all())
    slow = module.izhikevich(x, w_init=torch.full((6,), 0.25), tau_w=tau)
    assert bool((slow[2] == 0.25).all())


@pytest.mark.parametrize("neuron", [n.name for n in NEURONS if any(p.inverse for p in n.numbers())])
def test_the_ends_of_a_time_constant(neuron: str) -> None:
    """tau=inf and tau=1 agree with the reference, and the gradient in tau is finite."""
    tensors = inputs(neuron, (8, 6), torch.float32, reset="soft")
    for value in (1.0, math.inf):
        found = results(functional, neuron, {**tensors, "tau": torch.full((6,), value)})
        expected = results(reference, neuron, {**tensors, "tau": torch.full((6,), value)})
        for a, b in zip((*found[0], *found[1].values()), (*expected[0], *expected[1].values()), strict=True):
            assert error(a, b) <= TOLERANCE[torch.float32]
        number = results(functional, neuron, tensors, tau=value)
        assert all(map(torch.equal, number[0], found[0]))


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_other_numbers_are_finite(neuron: str) -> None:
    x, learned = torch.zeros(2, 3), [torch.tensor(0.5) for _ in neuron_class(neuron).learned]
    for p in neuron_class(neuron).numbers():
        for value in (math.inf, -math.inf, math.nan):
            if value != math.inf or not p.range.infinite:
                with pytest.raises(ValueError, match=f"{p.name} must be a.* (number|integer).*, got {value}"):
                    operator(neuron)(x, *learned, **{p.name: value})
