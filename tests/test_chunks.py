"""A sequence may come in chunks: the carried state gives what one call gives, gradients included, or cuts them on purpose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from snnkern import functional, nn

from support import DTYPES, NEURON_NAMES, function, inputs, neuron_class, noise, reset_options, results

each_case = pytest.mark.parametrize("case", [f"{n}:{r}" for n in NEURON_NAMES for r in neuron_class(n).resets()])
STEPS = (1, 16, 20)  # shorter than a checkpoint's period, one, and more


def in_chunks(neuron: str, tensors: dict[str, Tensor], detach: bool, **options: Any) -> tuple[Tensor, ...]:
    """Outputs as of one call; with detach no gradient passes from a chunk to the one before."""
    names = [f"{s.name}_init" for s in neuron_class(neuron).states]
    carried = {name: tensors[name] for name in names}
    learned = {name: t for name, t in tensors.items() if name not in [*names, "x_seq"]}
    outputs = []
    for part in tensors["x_seq"].split(STEPS):
        spikes, *states = function(functional, neuron)(part, **carried, **learned, **options)
        outputs.append(spikes)
        carried = {name: s.detach() if detach else s for name, s in zip(names, states, strict=True)}
    return torch.cat(outputs), *states


def gradients(outputs: tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
    incoming = [noise(tuple(o.shape), o.dtype, 100 + i, str(o.device)) for i, o in enumerate(outputs)]
    return list(torch.autograd.grad(outputs, leaves, incoming, allow_unused=True, materialize_grads=True))


@each_case
@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_give_the_bits_of_the_whole(case: str, dtype: str, device: str) -> None:
    neuron, reset = case.split(":")
    tensors = {n: t.detach() for n, t in inputs(neuron, (37, 5), DTYPES[dtype], device, reset=reset).items()}
    options = reset_options(neuron, reset)
    whole = function(functional, neuron)(**tensors, **options)
    for a, b in zip(in_chunks(neuron, tensors, False, **options), whole, strict=True):
        assert torch.equal(a, b)


@each_case
def test_gradients_pass_through_the_carried_state(case: str, device: str) -> None:
    """To x, the initial states and learned parameters, as in one call."""
    neuron, reset = case.split(":")
    tensors = inputs(neuron, (37, 5), torch.float64, device, reset=reset)
    _, expected = results(functional, neuron, tensors, **reset_options(neuron, reset))
    grads = gradients(in_chunks(neuron, tensors, False, **reset_options(neuron, reset)), list(tensors.values()))
    for (name, wanted), grad in zip(expected.items(), grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@each_case
def test_detach_truncates(case: str, device: str) -> None:
    """The gradient in a chunk's input is that of the chunk alone, from the state that it began with."""
    neuron, reset = case.split(":")
    options = reset_options(neuron, reset)
    tensors = inputs(neuron, (37, 5), torch.float64, device, reset=reset)
    outputs = in_chunks(neuron, tensors, True, **options)
    *_, x_grad = gradients(outputs, [tensors["v_init"], tensors["x_seq"]])
    plain = {name: t.detach() for name, t in tensors.items()}
    begin = sum(STEPS[:-1])
    _, *states = function(functional, neuron)(**{**plain, "x_seq": plain["x_seq"][:begin]}, **options)
    names = [f"{s.name}_init" for s in neuron_class(neuron).states]
    last = plain["x_seq"][begin:].requires_grad_()
    alone = function(functional, neuron)(**{**plain, "x_seq": last, **dict(zip(names, states, strict=True))}, **options)
    incoming = [noise(tuple(o.shape), o.dtype, 100 + i, device) for i, o in enumerate(outputs)]
    (expected,) = torch.autograd.grad(alone, last, [incoming[0][begin:], *incoming[1:]])
    torch.testing.assert_close(x_grad[begin:], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_a_module_carries_all_its_states(neuron: str, device: str) -> None:
    """As many calls or one: the same output, states and gradients; after detach() none from the calls before."""
    make = getattr(nn, neuron_class(neuron).module)
    whole, parts = (make().to(device, torch.float64) for _ in range(2))
    x = inputs(neuron, (37, 5), torch.float64, device)["x_seq"]
    expected = whole(x)
    got = torch.cat([parts(part) for part in x.split(STEPS)])
    assert torch.equal(got, expected)
    for state in neuron_class(neuron).states:
        assert torch.equal(getattr(parts, state.name), getattr(whole, state.name))
    incoming = noise(tuple(x.shape), x.dtype, 1, device)
    (a,) = torch.autograd.grad(got, x, incoming)
    (b,) = torch.autograd.grad(expected, x, incoming)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    parts.reset()
    first, _ = parts(x[:17]), parts.detach()
    second = parts(x[17:])
    grads = torch.autograd.grad(second, x, incoming[17:], retain_graph=True)[0]
    assert not grads[:17].any() and grads[17:].any() and first.requires_grad
