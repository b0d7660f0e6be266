"""Conventions of other libraries: a strict comparison, a delayed reset, several spikes a step, a lowest potential."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch

from snnkern import functional, nn, reference, surrogate
from snnkern.codegen.specification.neurons import CONVENTIONS, NEURONS

from support import (
    DTYPES,
    NEURON_RESET_DTYPES,
    check_same,
    function,
    inputs,
    neuron_class,
    noise,
    options_of,
    reset_options,
    results,
)

WITH = [n.name for n in NEURONS if n.conventions]
CASES = [c for c in NEURON_RESET_DTYPES if c.split(":")[0] in WITH]
VALUES: dict[str, Any] = {"strict": True, "delay_reset": True, "max_spikes": 3, "v_min": -0.4}
ALL = [n for n in NEURONS if set(n.conventions) == set(CONVENTIONS)]
each_neuron = pytest.mark.parametrize("neuron", WITH)


def conventions(neuron: str) -> dict[str, Any]:
    """A value of each of a neuron's conventions, not the default."""
    return {p.name: VALUES[p.name] for p in neuron_class(neuron).conventions}


def test_every_convention_is_tested() -> None:
    assert list(VALUES) == [p.name for p in CONVENTIONS]
    assert {"if", "lif", "plif", "cuba", "lapicque", "alif"} <= set(WITH)


@pytest.mark.sanitize
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_as_the_reference(case: str, detach_reset: bool, device: str) -> None:
    """Each alone, and all together, over a checkpoint. On CUDA the first two surrogates are compiled in, the third is called."""
    neuron, reset, dtype = case.split(":")
    tensors = inputs(neuron, (19, 3, 5), DTYPES[dtype], device, reset=reset)
    fixed = {**reset_options(neuron, reset), "v_threshold": 0.75, "detach_reset": detach_reset}
    own = conventions(neuron)
    settings = [{name: value} for name, value in own.items()] + [own, {**own, "max_spikes": None}]
    used = (surrogate.ATan(), surrogate.Sigmoid(), surrogate.FastSigmoid())
    for i, setting in enumerate(settings):
        check_same(neuron, tensors, **fixed, **setting, surrogate=used[i % 3], store_v_seq=bool(i % 2))


@each_neuron
def test_each_makes_a_difference(neuron: str, device: str) -> None:
    tensors = {name: t.detach() for name, t in inputs(neuron, (40, 64), torch.float64, device, reset="soft").items()}
    tensors["x_seq"] = (tensors["x_seq"] * 4).round() / 4 + 0.25
    # Powers of two, so that potentials are at the threshold now and then.
    options = options_of(neuron, v_reset=None, tau=2.0, alpha=0.5, beta=0.5, adapt=0.0, capacitance=2.0)
    if neuron == "plif":
        tensors["decay"] = torch.tensor(0.5, dtype=torch.float64, device=device)
    tensors = {name: torch.zeros_like(t) if name.endswith("_init") else t for name, t in tensors.items()}
    plain = function(functional, neuron)(**tensors, **options, store_v_seq=True)
    for name, value in conventions(neuron).items():
        other = function(functional, neuron)(**tensors, **options, **{name: value}, store_v_seq=True)
        assert not torch.equal(plain[1], other[1]), name


@each_neuron
def test_the_defaults_change_nothing(neuron: str, device: str) -> None:
    """Also where a tensor of the default asks for the kernels that have conventions."""
    tensors = inputs(neuron, (20, 3, 5), torch.float32, device)
    values, grads = results(functional, neuron, tensors)
    given = {p.name: p.default for p in neuron_class(neuron).conventions}
    for options in (given, {**given, "v_min": torch.tensor(-math.inf, device=device)}):
        other_values, other_grads = results(functional, neuron, tensors, **options)
        assert all(torch.equal(a, b) for a, b in zip(values, other_values, strict=True))
        for name, grad in grads.items():
            torch.testing.assert_close(other_grads[name], grad, rtol=1e-5, atol=1e-6)


def one_step(potential: float, **options: Any) -> tuple[float, float]:
    """Spikes and next potential of integrate-and-fire at this potential."""
    x = torch.tensor([[potential]], dtype=torch.float64)
    (s, v), expected = (module.if_(x, v_reset=None, **options) for module in (functional, reference))
    torch.testing.assert_close((s, v), expected, rtol=0, atol=0, equal_nan=True)
    return s.item(), v.item()


def test_strict() -> None:
    above = math.nextafter(1.0, 2.0)
    assert one_step(1.0) == (1, 0)
    assert one_step(1.0, strict=True) == (0, 1)
    assert one_step(above, strict=True) == (1, above - 1)
    assert one_step(math.nan, strict=True)[0] == 0


def test_several_spikes() -> None:
    found = [one_step(h, max_spikes=3)[0] for h in (-2.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.99, 3.5, 7.0, math.inf, math.nan)]
    assert found == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 0]
    assert one_step(7.5, max_spikes=None) == (7, 0.5)
    assert [one_step(h, max_spikes=None, strict=True)[0] for h in (0.0, 1.0, 1.5, 2.0, 2.5)] == [0, 0, 1, 1, 2]
    s, v = functional.if_(torch.tensor([[2.5]]), max_spikes=3, v_reset=-0.25)
    assert (s.item(), v.item()) == (2, -0.25)


def test_lowest_potential() -> None:
    assert one_step(-3.0, v_min=-0.5) == (0, -0.5)
    assert one_step(1.25, v_min=0.5) == (1, 0.5)
    assert math.isnan(one_step(math.nan, v_min=0.0)[1])
    x, low = torch.tensor([[-3.0, 0.25]], requires_grad=True), torch.tensor([-0.5, -0.5], requires_grad=True)
    functional.if_(x, v_min=low, detach_reset=True)[1].sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[0, 1]]
    assert low.grad is not None and low.grad.tolist() == [1, 0]


@pytest.mark.parametrize("v_reset", [None, 0.25])
def test_delayed_reset(v_reset: float | None) -> None:
    """A plain loop: the hard reset comes before the charge, the soft one after it, and the potential is kept as it was."""
    x_seq, v = noise((30, 50), torch.float64, 0) + 0.5, noise((50,), torch.float64, 1)
    spikes, v_seq = functional.lif(
        x_seq, v, tau=4.0, decay_input=False, v_reset=v_reset, delay_reset=True, store_v_seq=True
    )
    rest = v_reset or 0.0
    fired = 0
    for x, s, after in zip(x_seq, spikes, v_seq, strict=True):
        r = v >= 1.0
        fired += int(r.sum())
        start = v if v_reset is None else torch.where(r, v_reset, v)
        v = start - (start - rest) * 0.25 + x
        if v_reset is None:
            v = v - r * 1.0
        assert torch.equal(s, (v >= 1.0).double()) and torch.equal(after, v)
    assert fired > 100


def test_a_delayed_hard_reset_has_the_spikes_of_one_at_once() -> None:
    tensors = inputs("lif", (40, 64), torch.float64)
    tensors["v_init"] = tensors["v_init"].detach().clamp(max=0.5).requires_grad_()  # nothing is due at the start
    at_once = functional.lif(**tensors, detach_reset=True)[0]
    delayed = functional.lif(**tensors, delay_reset=True)[0]
    assert torch.equal(at_once, delayed)
    incoming = noise((40, 64), torch.float64, 9)
    wanted = list(tensors.values())
    for a, b in zip(*(torch.autograd.grad(s, wanted, incoming) for s in (at_once, delayed)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("neuron", [n.name for n in ALL])
def test_in_chunks(neuron: str) -> None:
    """The state that is kept says whether a reset is due."""
    tensors = inputs(neuron, (24, 3, 5), torch.float64)
    states = [f"{s.name}_init" for s in neuron_class(neuron).states]
    whole = function(functional, neuron)(**tensors, **conventions(neuron))
    carried = {name: t for name, t in tensors.items() if name != "x_seq"}
    parts = []
    for x in tensors["x_seq"].split(7):
        s, *last = function(functional, neuron)(x, **carried, **conventions(neuron))
        parts.append(s)
        carried.update(zip(states, last, strict=True))
    assert torch.equal(torch.cat(parts), whole[0])
    assert all(torch.equal(a, b) for a, b in zip(last, whole[1:], strict=True))


@each_neuron
def test_modules(neuron: str, device: str) -> None:
    made = getattr(nn, neuron_class(neuron).module)
    layer = made(**conventions(neuron)).to(device)
    x = noise((12, 4, 6), torch.float32, 0, device)
    learned = [layer.w.sigmoid().reshape(())] if neuron_class(neuron).learned else []
    expected = function(functional, neuron)(x, *learned, **conventions(neuron))[0]
    assert torch.equal(layer(x), expected)
    assert "v_min=-0.4" in repr(layer) and "v_min" not in repr(made())
    stream = io.BytesIO()
    layer.reset()
    torch.jit.save(torch.jit.script(layer), stream)
    assert torch.equal(torch.jit.load(io.BytesIO(stream.getvalue()))(x), expected)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled() -> None:
    x = noise((12, 4, 6), torch.float32, 0).requires_grad_()
    run = torch.compile(lambda x: functional.lif(x, **VALUES)[0], backend="aot_eager", fullgraph=True)
    (expected,) = torch.autograd.grad(functional.lif(x, **VALUES)[0].sum(), x)
    (found,) = torch.autograd.grad(run(x).sum(), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("module", [functional, reference])
def test_errors(module: Any) -> None:
    x = torch.zeros(2, 3)
    smooth = surrogate.ATan(spiking=False)
    errors = (RuntimeError, ValueError)
    with pytest.raises(errors, match="spiking=False needs strict, delay_reset, max_spikes, v_min at their defaults"):
        module.lif(x, surrogate=smooth, v_min=-1.0)
    with pytest.raises(errors, match=r"max_spikes > 1 needs v_threshold > 0, got -1"):
        module.lif(x, max_spikes=2, v_threshold=-1.0)
    with pytest.raises(errors, match=r"max_spikes must be an integer >= 1, got 1\.5"):
        module.lif(x, max_spikes=1.5)
    with pytest.raises(errors, match="max_spikes must be an integer >= 1, got 0"):
        module.lif(x, max_spikes=0)
    with pytest.raises(errors, match="v_min must be a finite number, got -inf"):
        module.lif(x, v_min=-math.inf)
    with pytest.raises(TypeError, match="delay_reset"):
        module.alif(x, delay_reset=True)  # its threshold has moved by then
