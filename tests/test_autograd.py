"""Autograd: what is retained, partial gradients, changes in place, backward twice, and several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from snnkern import functional, reference

from support import KINDS, NEURON_NAMES, function, gradients, inputs, network, noise

pytestmark = pytest.mark.compatibility


@pytest.mark.parametrize("neuron", NEURON_NAMES)
@pytest.mark.parametrize("store_v_seq", [False, True])
def test_a_missing_gradient_counts_as_zero(neuron: str, store_v_seq: bool, device: str) -> None:
    tensors = inputs(neuron, (20, 5), torch.float64, device)
    grads = []
    for module in (functional, reference):
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        outputs = function(module, neuron)(**leaves, store_v_seq=store_v_seq)
        grads.append(
            [
                torch.autograd.grad(o.square().sum(), list(leaves.values()), retain_graph=True, materialize_grads=True)
                for o in outputs
            ]
        )
    for got, expected in zip(*grads, strict=True):
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_only_the_wanted_gradients(neuron: str, device: str) -> None:
    tensors = inputs(neuron, (20, 5), torch.float64, device)
    everything = torch.autograd.grad(function(functional, neuron)(**tensors)[0].sum(), list(tensors.values()))
    for name, expected in zip(tensors, everything, strict=True):
        alone = {n: t if n == name else t.detach() for n, t in tensors.items()}
        (grad,) = torch.autograd.grad(function(functional, neuron)(**alone)[0].sum(), alone[name])
        assert torch.equal(grad, expected)


def saved_tensors(x: torch.Tensor) -> list[torch.Tensor]:
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        functional.lif(x)
    return saved


def test_training_retains_x_and_one_sixteenth_of_it(device: str) -> None:
    for steps in (1, 16, 17, 128):
        x = noise((steps, 50), torch.float32, 0, device).requires_grad_()
        own = [t for t in saved_tensors(x) if t.data_ptr() != x.data_ptr()]
        assert sum(t.numel() for t in own) == (steps - 1) // 16 * 50


def test_inference_makes_no_checkpoints(device: str) -> None:
    x = noise((128, 50), torch.float32, 0, device)
    spikes, v = functional.lif(x)
    assert not spikes.requires_grad and not v.requires_grad
    with torch.no_grad():
        assert not functional.lif(x.requires_grad_())[0].requires_grad


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_in_place_changes_are_noticed(neuron: str, device: str) -> None:
    """Of x, of the initial states and of learned parameters; what came out may be changed."""
    tensors = inputs(neuron, (4, 5), torch.float32, device)
    for name in tensors:
        inner = {n: t * 1 for n, t in tensors.items()}
        total = function(functional, neuron)(**inner)[0].sum()
        inner[name].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()
    spikes = function(functional, neuron)(**tensors)[0]
    expected = torch.autograd.grad(spikes.sum(), tensors["x_seq"], retain_graph=True)
    assert torch.equal(torch.autograd.grad(spikes.add_(1).sum(), tensors["x_seq"])[0], expected[0])


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_retain_graph_and_backward_twice(neuron: str, device: str) -> None:
    tensors = inputs(neuron, (20, 5), torch.float32, device)
    spikes = function(functional, neuron)(**tensors)[0]
    spikes.sum().backward(retain_graph=True)
    first = {name: t.grad.clone() for name, t in tensors.items()}
    spikes.sum().backward()
    for name, t in tensors.items():
        assert torch.equal(t.grad, 2 * first[name])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        spikes.sum().backward()


@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_backward_through_parts_of_a_sequence(neuron: str, device: str) -> None:
    """The state carries the gradient from one call to the one before, as one call over all steps would."""
    tensors = inputs(neuron, (36, 5), torch.float64, device)
    x, leaves = tensors.pop("x_seq"), list(tensors.values())
    spikes, *states = function(functional, neuron)(x, **tensors)
    expected = torch.autograd.grad(spikes.square().sum() + sum(s.sum() for s in states), [x, *leaves])
    first, *states = function(functional, neuron)(x[:17], **tensors)
    learned = [t for name, t in tensors.items() if not name.endswith("_init")]
    second, *states = function(functional, neuron)(x[17:], *learned, *states)
    total = first.square().sum() + second.square().sum() + sum(s.sum() for s in states)
    for a, b in zip(torch.autograd.grad(total, [x, *leaves]), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("neuron", KINDS)
def test_several_threads(neuron: str, device: str) -> None:
    """Forward and backward in many threads at once, each with its own graph, and many backwards of one graph."""
    nets = [network(neuron, device) for _ in range(8)]
    xs = [noise((20, 3, 5), torch.float32, i, device).requires_grad_() for i in range(8)]
    expected = [gradients(net, x) for net, x in zip(nets, xs, strict=True)]
    tensors = inputs(neuron, (20, 300), torch.float32, device)
    total = function(functional, neuron)(**tensors)[0].sum()
    leaves = list(tensors.values())
    alone = torch.autograd.grad(total, leaves, retain_graph=True)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for got, wanted in zip(pool.map(gradients, nets, xs), expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
            for got in pool.map(lambda _: torch.autograd.grad(total, leaves, retain_graph=True), range(8)):
                assert all(torch.equal(a, b) for a, b in zip(got, alone, strict=True))
